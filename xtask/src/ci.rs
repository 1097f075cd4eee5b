//! `cargo xtask ci`: everything a change must pass.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::steps::Steps;
use crate::{cargo, dependencies, features, test};

/// Runs every check, then the tests.
pub(crate) fn run(steps: &mut Steps, as_is: bool) -> Result<()> {
    steps.command("format", &mut cargo::command(["fmt", "--all", "--check"]))?;
    steps.run("dependencies", dependencies::check_tree)?;
    steps.run("embedded example", dependencies::check_embedded)?;
    if has_cargo_deny() {
        let deny = [
            "deny",
            "--offline",
            "--all-features",
            "check",
            "bans",
            "licenses",
            "sources",
        ];
        steps.command("cargo deny", &mut cargo::command(deny))?;
    }
    steps.command(
        "clippy",
        &mut cargo::command([
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--locked",
            "--",
            "-Dwarnings",
        ]),
    )?;
    steps.command(
        "documents",
        cargo::command(["doc", "--workspace", "--all-features", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    steps.run("each feature alone", each_feature_alone)?;
    test::run(steps, &[], as_is)
}

/// A crate must compile with none of its features and with each of them alone.
fn each_feature_alone() -> Result<()> {
    for package in features::packages(cargo::root())? {
        for feature in package.selections() {
            let mut command = cargo::command([
                "clippy",
                "--quiet",
                "--locked",
                "--package",
                &package.name,
                "--no-default-features",
                "--features",
                &feature,
                "--",
                "-Dwarnings",
            ]);
            println!("    {} [{feature}]", package.name);
            crate::steps::succeed(&mut command)?;
        }
    }
    Ok(())
}

fn has_cargo_deny() -> bool {
    Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
