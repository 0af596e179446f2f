//! Keys that have moved: their former owner is asked before they are loaded, and no write is undone by what it has.

mod leaving;
mod pages;
mod peeks;
mod stub;
mod writes;
