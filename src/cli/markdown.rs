//! `docs/options.md`, written from the flags' definitions.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use super::{Cli, AFTER_HELP};

/// What the page begins with.
const HEAD: &str = "\
# Options

Written from the program's own definitions (`UPDATE_DOCS=1 cargo test --release --test cli` writes it anew); `sluice COMMAND
--help` says the same.
";

/// What the page says of the config file.
const CONFIG: &str = "\
## Config file

`--config job.toml` takes options of `translate`, `generate` or `score` from a TOML file. Keys are the long flags' names, with `-` or
`_`; the command line wins over the file. Switches are `true` or `false`, several values a list, also those of a flag that is
given several times (`stop = [\"\\n\", \"Q:\"]`). Paths are taken from the current folder. INPUT stands on the command line.

```toml
model = \"inputs/en-fr-de\"
source = \"eng_Latn\"
target = [\"fra_Latn\", \"deu_Latn\"]
num-beams = 4
scores = true
```

A switch of the file is taken back on the command line with `=false`: `--scores=false`.
";

/// The whole page.
pub fn options_page() -> String {
    let cli = Cli::command();
    let mut page = HEAD.to_owned();
    for command in cli.get_subcommands() {
        describe(&mut page, "sluice", command);
    }
    // Writing to a String can't fail.
    let _ = write!(page, "\n{CONFIG}\n## All commands\n\n```text\n{AFTER_HELP}\n```\n");
    page
}

/// One command: what it does, how it is called, its flags by heading; or the commands in it.
fn describe(page: &mut String, program: &str, command: &Command) {
    let name = format!("{program} {}", command.get_name());
    if command.has_subcommands() {
        command.get_subcommands().for_each(|inner| describe(page, &name, inner));
        return;
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n{about}.\n");
    let mut heading = None;
    if command.get_arguments().all(|flag| flag.get_help_heading().is_none()) {
        page.push('\n');
    }
    for flag in command.get_arguments().filter(|flag| flag.get_id() != "help") {
        if flag.get_help_heading() != heading {
            heading = flag.get_help_heading();
            let _ = write!(page, "\n### {}\n\n", heading.unwrap_or("Options"));
        }
        let _ = writeln!(page, "- `{}`: {}.", usage(flag), explanation(flag));
    }
    if let Some(after) = command.get_after_long_help() {
        let _ = write!(page, "\n```text\n{after}\n```\n");
    }
}

/// How the flag is written: `-m, --model DIR`.
fn usage(flag: &Arg) -> String {
    let value = flag
        .get_value_names()
        .and_then(<[_]>::first)
        .map(|name| name.as_str())
        .unwrap_or_default();
    let Some(long) = flag.get_long() else {
        return value.to_owned();
    };
    let short = flag.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let value = match value {
        "" | "BOOL" => String::new(),
        _ if !flag.get_action().takes_values() => String::new(),
        value => format!(" {value}"),
    };
    format!("{short}--{long}{value}")
}

/// The flag's help, its possible values and its default.
fn explanation(flag: &Arg) -> String {
    let mut text = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let is_switch = flag.is_hide_possible_values_set() || !flag.get_action().takes_values();
    let values: Vec<String> = flag
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() && !is_switch {
        let _ = write!(text, ". Values: {}", values.join(", "));
    }
    if let [default] = flag.get_default_values() {
        if !is_switch {
            let _ = write!(text, ". Default: {}", default.to_string_lossy());
        }
    }
    text
}
