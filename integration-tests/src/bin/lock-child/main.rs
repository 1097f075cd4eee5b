//! One holder of the lock's fault matrix, in a process of its own that a test freezes, kills and cuts off.
//!
//! It acquires the lock, holds it over some renewals, commits one fenced transaction, and releases. Before
//! the step named by `--at` it prints `at STEP` and waits until the file `--gate` exists. What it believed
//! and when goes into the table `history` of the database; the test reads it afterwards.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod books;
mod life;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// How long after a runtime was shut down what still runs on other threads may go wrong.
const AFTERMATH: Duration = Duration::from_millis(100);

/// What to lock and where.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// `redis://…`.
    #[arg(long)]
    redis: String,
    /// `postgres://…`, with the tables of the lock and of the test.
    #[arg(long)]
    database: String,
    /// What is locked, fenced and worked on.
    #[arg(long)]
    key: String,
    /// Who this is in the history.
    #[arg(long)]
    name: String,
    /// The ttl; margin and renewals are a third of it each.
    #[arg(long)]
    ttl_ms: u64,
    /// How long to wait for the lock.
    #[arg(long, default_value_t = 20_000)]
    within_ms: u64,
    /// Before which step to wait for the gate.
    #[arg(long, value_enum)]
    at: Option<Step>,
    /// The file that opens the gate.
    #[arg(long)]
    gate: Option<PathBuf>,
    /// Shuts the runtime down at that step, right after the gate.
    #[arg(long)]
    shut_down: bool,
    /// Neither locks nor fences.
    #[arg(long)]
    bare: bool,
}

/// The steps of a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    Acquire,
    Hold,
    Renew,
    Commit,
    Release,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Hold => "hold",
            Self::Renew => "renew",
            Self::Commit => "commit",
            Self::Release => "release",
        }
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lock-child: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (sender, ended) = mpsc::channel();
    let shut_down = sender.clone();
    runtime.spawn(async move {
        let lived = life::live(&arguments, shut_down).await;
        let _ = sender.send(lived);
    });
    // The life's end, or its wish that the runtime be shut down under it.
    let lived = ended.recv();
    runtime.shutdown_background();
    match lived {
        Ok(Ok(how)) => {
            if how == life::SHUT_DOWN {
                std::thread::sleep(AFTERMATH);
            }
            println!("done: {how}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("lock-child: {error:#}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("lock-child: the life panicked");
            ExitCode::FAILURE
        }
    }
}
