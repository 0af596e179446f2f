#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| discovery_mdns::fuzz::record(bytes));
