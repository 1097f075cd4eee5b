//! The binary: parse, dispatch, exit. See the library for everything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    outbox_relay::command::main(std::env::args_os())
}
