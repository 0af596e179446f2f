#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groupcache_core::fuzz::wire(bytes));
