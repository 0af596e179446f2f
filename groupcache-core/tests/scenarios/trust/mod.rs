//! Nobody in who does not belong: certificates, keys, and what happens when they change.

mod clusters;
mod matrix;
mod mounted;
mod rotation;
mod strangers;
