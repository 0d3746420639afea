//! The program as a user meets it: exit codes, messages, help; and the page of options.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use sluicegate::cli::markdown;

/// Runs `sluice` with these arguments, without a launcher's or a log's variables.
fn sluice(arguments: &[&str]) -> Output {
    command(arguments).output().expect("sluice starts")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["OMPI_", "PMI", "SLURM_", "RUST_LOG"]
            .iter()
            .any(|start| name.starts_with(start))
        {
            command.env_remove(name);
        }
    }
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn the_page_of_options_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md");
    let page = markdown::options_page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("docs/options.md can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/options.md is not what the program says: UPDATE_DOCS=1 cargo test --release --test cli"
    );
}

#[test]
fn help_and_version_are_success() {
    let help = sluice(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for part in ["translate", "show", "merge", "doctor", "Exit codes:", "128+n"] {
        assert!(stdout(&help).contains(part), "{part} is not in --help");
    }
    let translate = stdout(&sluice(&["translate", "--help"]));
    for part in [
        "Input and output:",
        "Generation:",
        "Speed and memory:",
        "Ranks:",
        "Results:",
        "--num-beams <N>",
    ] {
        assert!(translate.contains(part), "{part} is not in translate --help");
    }
    let version = sluice(&["--version"]);
    assert_eq!(stdout(&version).trim(), format!("sluice {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn refusals_are_two_and_name_the_flag() {
    for (arguments, part) in [
        (&["translate", "in"][..], "--model <DIR>"),
        (
            &["translate", "in", "-m", "m", "-o", "o.h5", "--num-beams", "0"],
            "--num-beams",
        ),
        (
            &["translate", "in", "-m", "m", "-o", "o.h5", "--num-beam", "2"],
            "--num-beams",
        ),
        (
            &["translate", "in", "-m", "m", "-o", "o.h5", "--config", "none.toml"],
            "none.toml",
        ),
        (&["translate", "in", "-m", "m", "-o", "nowhere/o.h5"], "nowhere"),
        (&["translate", "in", "-m", "m", "-o", "in"], "same file"),
        (&["frobnicate"], "frobnicate"),
        (&["show"], "OUT.h5"),
    ] {
        let output = sluice(arguments);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(
            message.starts_with("sluice: error: ") && message.contains(part),
            "{arguments:?}: {message}"
        );
        assert!(output.stdout.is_empty());
    }
    assert_eq!(sluice(&[]).status.code(), Some(2));
}

#[test]
fn only_the_first_of_many_processes_speaks() {
    let wrong = ["translate", "in"];
    let first = command(&wrong).env("PMIX_RANK", "0").output().expect("sluice starts");
    assert!(stderr(&first).contains("--model"));
    let other = command(&wrong).env("PMIX_RANK", "1").output().expect("sluice starts");
    assert_eq!((other.status.code(), stderr(&other).as_str()), (Some(2), ""));
}

#[test]
fn a_reader_that_goes_away_is_success() {
    let mut child = command(&["doctor"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sluice starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("sluice ends");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn the_doctor_says_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = command(&["doctor"])
        .current_dir(folder.path())
        .output()
        .expect("sluice starts");
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    for part in ["sluice", "MPI", "HDF5", "processor", "memory", "GPU", "ready to run"] {
        assert!(stdout(&output).contains(part), "{part} is not in\n{}", stdout(&output));
    }
}
