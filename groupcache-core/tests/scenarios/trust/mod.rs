//! Nobody in who does not belong: certificates, keys, and what happens when they change.

mod clusters;
mod mounted;
mod rotation;
