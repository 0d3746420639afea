//! Tells the program which commit it was built from, for the run report.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    if let Ok(found) = described {
        if found.status.success() {
            println!(
                "cargo:rustc-env=SLUICE_GIT_HASH={}",
                String::from_utf8_lossy(&found.stdout).trim()
            );
        }
    }
}
