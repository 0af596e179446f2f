#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| discovery_nats::fuzz::message(bytes));
