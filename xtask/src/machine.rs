//! What the tests need beside Rust: found, or installed from Debian packages when run as root.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::steps::succeed;

/// One thing that must be on the machine.
struct Need {
    /// What it is, in words.
    what: &'static str,
    /// How to see that it is there.
    probe: Probe,
    /// Debian packages that bring it: the first that the machine's archive offers is taken.
    packages: &'static [&'static str],
    /// A variable with the address of a running server, which then serves instead.
    instead: Option<&'static str>,
}

enum Probe {
    /// A program in one of these places, else in PATH; a `*` stands for one folder.
    Program(&'static [&'static str], &'static str),
    /// A module that python3 can import.
    Python(&'static str),
}

const NEEDS: [Need; 7] = [
    Need {
        what: "a C compiler (SQLite is compiled in)",
        probe: Probe::Program(&[], "cc"),
        packages: &["build-essential"],
        instead: None,
    },
    Need {
        what: "PostgreSQL",
        probe: Probe::Program(&["/usr/lib/postgresql/*/bin"], "postgres"),
        packages: &["postgresql-15", "postgresql"],
        instead: Some("OUTBOX_TEST_POSTGRES_URL"),
    },
    Need {
        what: "PgBouncer",
        probe: Probe::Program(&["/usr/sbin"], "pgbouncer"),
        packages: &["pgbouncer"],
        instead: None,
    },
    Need {
        what: "MariaDB",
        probe: Probe::Program(&["/usr/sbin"], "mariadbd"),
        packages: &["mariadb-server"],
        instead: Some("OUTBOX_TEST_MARIADB_URL"),
    },
    Need {
        what: "RabbitMQ",
        probe: Probe::Program(&["/usr/lib/rabbitmq/bin"], "rabbitmq-server"),
        packages: &["rabbitmq-server"],
        instead: Some("OUTBOX_TEST_RABBITMQ_URL"),
    },
    Need {
        what: "Redis",
        probe: Probe::Program(&[], "redis-server"),
        packages: &["redis-server"],
        instead: Some("OUTBOX_TEST_REDIS_URL"),
    },
    Need {
        what: "psycopg2 (the sidecar example inserts from Python)",
        probe: Probe::Python("psycopg2"),
        packages: &["python3-psycopg2"],
        instead: None,
    },
];

/// Checks that everything is there; as root on Debian installs what is not.
///
/// # Errors
/// What is missing, and the one command that mends it.
pub(crate) fn make_ready() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        println!("    everything the tests need is installed");
        return Ok(());
    }
    for need in &missing {
        println!("    missing: {}", need.what);
    }
    if !has_apt() {
        bail!(
            "{}",
            advice(&missing, "this is no Debian machine: install them, or")
        );
    }
    if !is_root() {
        bail!(
            "{}",
            advice(&missing, &format!("run `sudo {}`, or", one_command(&missing)))
        );
    }
    install(&missing)?;
    let still = self::missing();
    if !still.is_empty() {
        bail!(
            "{}",
            advice(
                &still,
                "the packages were installed but did not bring them: look at PATH, or"
            )
        );
    }
    Ok(())
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !is_there(need)).collect()
}

fn is_there(need: &Need) -> bool {
    if need.instead.is_some_and(|name| env::var_os(name).is_some()) {
        return true;
    }
    match need.probe {
        Probe::Program(folders, program) => {
            let path = env::var_os("PATH").unwrap_or_default();
            let fixed = folders.iter().flat_map(|pattern| expand(Path::new(pattern)));
            fixed
                .chain(env::split_paths(&path))
                .any(|folder| folder.join(program).is_file())
        }
        // Debian's modules belong to Debian's python, which need not be the first in PATH.
        Probe::Python(module) => ["/usr/bin/python3", "python3"].into_iter().any(|python| {
            Command::new(python)
                .args(["-c", &format!("import {module}")])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        }),
    }
}

/// The folders that `pattern` names; `*` stands for any one folder.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern {
        found = found
            .into_iter()
            .flat_map(|folder| {
                if part != "*" {
                    return vec![folder.join(part)];
                }
                let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
                entries.map(|entry| entry.path()).collect()
            })
            .collect();
    }
    found
}

fn advice(missing: &[&Need], first: &str) -> String {
    let what: Vec<_> = missing.iter().map(|need| need.what).collect();
    let variables: Vec<_> = missing.iter().filter_map(|need| need.instead).collect();
    let mut text = format!("the tests need {}; {first} ", what.join(", "));
    if !variables.is_empty() {
        text += &format!("name running servers in {}, or ", variables.join(", "));
    }
    text + "pass `--as-is` to run without"
}

fn one_command(missing: &[&Need]) -> String {
    format!(
        "apt-get install -y --no-install-recommends {}",
        packages(missing).join(" ")
    )
}

fn packages(missing: &[&Need]) -> Vec<&'static str> {
    missing.iter().filter_map(|need| offered(need.packages)).collect()
}

/// The first of `names` that the archive knows; the last if it knows none, for apt to complain about.
fn offered(names: &[&'static str]) -> Option<&'static str> {
    let known = |name: &&&str| {
        Command::new("apt-cache")
            .args(["show", "--quiet", "--no-all-versions", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    names.iter().find(known).or(names.last()).copied()
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").is_file()
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn install(missing: &[&Need]) -> Result<()> {
    let _quiet = NoServices::hold(Path::new("/usr/sbin/policy-rc.d"))?;
    twice(|| succeed(&mut apt(&["update"])))?;
    let packages = packages(missing);
    println!("    installing {}", packages.join(" "));
    let fixed = ["install", "-y", "--no-install-recommends"];
    let arguments: Vec<&str> = fixed.into_iter().chain(packages).collect();
    twice(|| succeed(&mut apt(&arguments)))
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=120"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command
}

/// Once more after a failure: a mirror in the middle of an update answers wrongly for a moment.
fn twice(mut action: impl FnMut() -> Result<()>) -> Result<()> {
    action().or_else(|error| {
        println!("    {error:#}; trying once more");
        action()
    })
}

/// While it lives, packages that are installed do not start their services.
///
/// The tests start servers of their own; a service on the usual port would only be in the way.
struct NoServices {
    /// Our own policy file, to be removed; `None` if the machine has one of its own.
    file: Option<PathBuf>,
}

impl NoServices {
    const POLICY: &str = "#!/bin/sh\n# written by cargo xtask test, removed when it ends\nexit 101\n";

    fn hold(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            // Left by a run that was killed: ours to remove.
            Ok(text) if text == Self::POLICY => {}
            Ok(_) => return Ok(Self { file: None }),
            Err(error) if error.kind() == ErrorKind::NotFound => write_program(path, Self::POLICY)?,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        Ok(Self {
            file: Some(path.to_owned()),
        })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && let Err(error) = fs::remove_file(file)
        {
            eprintln!("cannot remove {}: {error}; remove it by hand", file.display());
        }
    }
}

#[cfg(unix)]
fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let write = || {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(not(unix))]
fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_policy_is_there_only_while_it_is_held() {
        let folder = folder("policy");
        let file = folder.join("policy-rc.d");
        let held = NoServices::hold(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), NoServices::POLICY);
        drop(held);
        assert!(!file.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_policy_of_the_machine_is_left_alone() {
        let folder = folder("own-policy");
        let file = folder.join("policy-rc.d");
        fs::write(&file, "#!/bin/sh\nexit 0\n").unwrap();
        drop(NoServices::hold(&file).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_policy_left_by_a_killed_run_is_removed() {
        let folder = folder("stale-policy");
        let file = folder.join("policy-rc.d");
        fs::write(&file, NoServices::POLICY).unwrap();
        drop(NoServices::hold(&file).unwrap());
        assert!(!file.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_out() {
        let need = Need {
            what: "a server nobody has",
            probe: Probe::Program(&["/nonexistent/*/bin"], "no-such-server"),
            packages: &["no-such-package"],
            instead: Some("NO_SUCH_SERVER_URL"),
        };
        assert!(!is_there(&need));
        let text = advice(&[&need], "run this, or");
        for part in ["a server nobody has", "run this", "NO_SUCH_SERVER_URL", "--as-is"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_one_folder() {
        let folder = folder("star");
        fs::create_dir_all(folder.join("15/bin")).unwrap();
        assert_eq!(expand(&folder.join("*/bin")), [folder.join("15/bin")]);
        assert!(expand(&folder.join("none/*/bin")).is_empty());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failure_is_tried_once_more_and_not_twice() {
        let mut calls = 0;
        let mut fail_first = |times: u32| {
            calls = 0;
            twice(|| {
                calls += 1;
                if calls <= times {
                    bail!("transient")
                } else {
                    Ok(())
                }
            })
        };
        fail_first(1).unwrap();
        assert!(fail_first(2).is_err());
    }
}
