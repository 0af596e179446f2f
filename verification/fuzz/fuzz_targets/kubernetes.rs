#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| discovery_kubernetes::fuzz::object(bytes));
