//! Whatever a program asks or a name server answers is read or refused; what is sent on or answered reads back.

#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| dns::fuzz_message(message));
