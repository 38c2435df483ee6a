//! The program that runs on both sides of the whole-cluster tests: a server with truthful and untruthful habits in the
//! pods, and the clients that measure and probe it from the developer's side. One static file, threads only.

use std::process::ExitCode;

fn main() -> ExitCode {
    match testkit::app::main() {
        Ok(code) => code,
        Err(error) => {
            testkit::app::say(&format!("testapp: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
