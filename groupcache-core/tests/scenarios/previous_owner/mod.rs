//! Keys that have moved: a new owner reads them from their previous owner before it loads them and receives them in
//! pages, and no value of a previous owner undoes a write.

mod leaving;
mod pages;
mod reads;
mod stub;
mod writes;
