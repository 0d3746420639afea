//! `--config FILE.toml`: options in a file, under the long flags' names, e.g. `num-beams = 4` (or `num_beams`).
//!
//! Each key becomes an argument before the command line's own ones. A later argument replaces an earlier one, so the
//! command line wins. A flag that may be given several times takes a list, and none of it where the command line has the
//! flag. Paths in the file are taken from the current folder, as on the command line.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use clap::{Arg, ArgAction, Command};
use toml::Value;

use crate::metrics::edit_distance::levenshtein;

/// Puts the options of the file that `--config` names before the other arguments of the command.
///
/// `program` is the whole command line's definition, `arguments` begin with the program's name.
///
/// # Errors
/// When the file can't be read, is no TOML, or has an unknown key or a value of the wrong type: names file and key.
pub fn expand(program: &Command, mut arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let command = arguments
        .get(1)
        .and_then(|name| name.to_str())
        .and_then(|name| program.find_subcommand(name));
    let Some(command) = command.filter(|command| flag(command, "config").is_some()) else {
        return Ok(arguments);
    };
    let Some(path) = named_file(&arguments[2..]) else {
        return Ok(arguments);
    };
    let regular = fs::metadata(&path).map_or(true, |found| found.is_file());
    ensure!(
        regular,
        "--config {}: that is no file; name a TOML file",
        path.display()
    );
    let text = fs::read_to_string(&path).with_context(|| format!("--config {}: cannot be read", path.display()))?;
    let options = options(command, &path, &text, &arguments[2..])?;
    arguments.splice(2..2, options);
    Ok(arguments)
}

/// The file named by the last `--config FILE` or `--config=FILE`.
fn named_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut found = None;
    let mut arguments = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            found = arguments.next().map(PathBuf::from);
        } else if let Some(path) = argument
            .to_str()
            .and_then(|argument| argument.strip_prefix("--config="))
        {
            found = Some(PathBuf::from(path));
        }
    }
    found
}

/// The file's keys as arguments, in the file's order; `line` are those of the command line.
fn options(command: &Command, path: &Path, text: &str, line: &[OsString]) -> Result<Vec<OsString>> {
    // Its error shows the line and the place in it, over several lines; one line is what an error has here.
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let error: toml::de::Error = error;
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            bail!(
                "--config {}: line {}: {}",
                path.display(),
                before.matches('\n').count() + 1,
                error.message()
            );
        }
    };
    let mut arguments = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        if name == "config" {
            bail!(
                "--config {}: key {key:?}: a config file can't name another one",
                path.display()
            );
        }
        let Some(flag) = flag(command, &name) else {
            return Err(unknown(command, path, key, &name));
        };
        let place = || format!("--config {}: key {key:?}", path.display());
        let texts = match value {
            Value::Array(items) if is_repeated(flag) => {
                let items = items.iter().map(|item| as_text(flag, item));
                items.collect::<Result<_>>().with_context(place)?
            }
            value => vec![as_text(flag, value).with_context(place)?],
        };
        let own: Vec<OsString> = texts.iter().map(|text| format!("--{name}={text}").into()).collect();
        own.iter()
            .try_for_each(|argument| accept(flag, argument))
            .with_context(place)?;
        // Another one of these would be added to the file's, not replace them.
        if !(is_repeated(flag) && is_on(line, &name)) {
            arguments.extend(own);
        }
    }
    Ok(arguments)
}

/// Whether each time that a flag is given adds to the others.
fn is_repeated(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::Append)
}

/// Whether the command line has a flag of this long name.
fn is_on(line: &[OsString], name: &str) -> bool {
    let flags = line.iter().take_while(|argument| *argument != "--");
    let mut names = flags.filter_map(|argument| argument.to_str()?.strip_prefix("--"));
    names.any(|flag| flag.split('=').next() == Some(name))
}

/// The flag of this long name.
fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|flag| flag.get_long() == Some(name))
}

/// The error for a key that is no flag.
fn unknown(command: &Command, path: &Path, key: &str, name: &str) -> anyhow::Error {
    let path = path.display();
    let of_input = |positional: &Arg| {
        let shown = positional.get_value_names().and_then(<[_]>::first);
        positional.get_id() == name || shown.is_some_and(|shown| shown.eq_ignore_ascii_case(name))
    };
    if command.get_positionals().any(of_input) {
        return anyhow::anyhow!("--config {path}: key {key:?}: it has no flag; put it on the command line");
    }
    let flags = command
        .get_arguments()
        .filter_map(Arg::get_long)
        .filter(|flag| *flag != "config");
    let closest = flags
        .min_by_key(|flag| levenshtein(flag.as_bytes(), name.as_bytes()))
        .unwrap_or_default();
    anyhow::anyhow!(
        "--config {path}: unknown key {key:?}; keys are the long flags' names, the closest one is {closest:?} \
         (sluice {} --help lists them)",
        command.get_name()
    )
}

/// A value as it would stand on the command line.
fn as_text(flag: &Arg, value: &Value) -> Result<String> {
    let kind = flag
        .get_value_names()
        .and_then(<[_]>::first)
        .map_or("", |name| name.as_str());
    let is_list = flag.get_value_delimiter().is_some();
    // Some flags take the word "true" among others: there TOML's own true is as good.
    let takes_truth = flag
        .get_possible_values()
        .iter()
        .any(|possible| possible.matches("true", false));
    let text = match (kind, value) {
        ("N" | "N|auto" | "SIZE|auto", Value::Integer(number)) => Some(number.to_string()),
        ("X", Value::Integer(number)) => Some(number.to_string()),
        ("X", Value::Float(number)) => Some(number.to_string()),
        ("N" | "X", _) => None,
        ("BOOL", value) => value.as_bool().map(|truth| truth.to_string()),
        (_, Value::Boolean(truth)) if takes_truth => Some(truth.to_string()),
        (_, Value::String(text)) => Some(text.clone()),
        (_, Value::Array(items)) if is_list => {
            let texts = items.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
            if let Some(text) = texts.iter().flatten().find(|text| text.contains(',')) {
                bail!(
                    "{text:?} in a list: commas divide what --{} takes",
                    flag.get_long().unwrap_or_default()
                );
            }
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    };
    let Some(text) = text else {
        let wanted = match kind {
            "N" => "a whole number",
            "N|auto" => "a whole number or 'auto'",
            "SIZE|auto" => "an amount of memory such as '2G', or 'auto'",
            "X" => "a number",
            "BOOL" => "true or false",
            _ if is_list || is_repeated(flag) => "a string or a list of strings",
            _ => "a string in quotes",
        };
        bail!("found {} {value}, expected {wanted}", value.type_str());
    };
    Ok(text)
}

/// Lets the flag's own definition judge the value, alone, so that an error can name the file.
fn accept(flag: &Arg, argument: &OsString) -> Result<()> {
    let alone = Command::new("config")
        .no_binary_name(true)
        .arg(flag.clone().required(false));
    if let Err(error) = alone.try_get_matches_from([argument]) {
        let text = error.render().to_string();
        let lines = text.trim_start_matches("error: ").lines().map(str::trim);
        let said: Vec<&str> = lines
            .take_while(|line| !line.starts_with("For more"))
            .filter(|line| !line.is_empty())
            .collect();
        bail!("{}", said.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::generation::EarlyStopping;
    use crate::cli::run::OnError;
    use crate::cli::{parse, Command, TranslateArgs};

    fn translate(toml: &str, line: &str) -> Result<TranslateArgs> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("job.toml");
        fs::write(&path, toml)?;
        let path = path.display().to_string();
        let start = ["sluice", "translate", "in.txt", "--config", &path];
        match parse(start.into_iter().chain(line.split_whitespace()))?.command {
            Command::Translate(arguments) => Ok(*arguments),
            _ => panic!("not translate"),
        }
    }

    const WHOLE: &str = "
        model = 'm'   # a comment
        output = 'o.h5'
        source = 'eng_Latn'
        target = ['fra_Latn', 'deu_Latn']
        num_beams = 4
        length-penalty = -1
        early-stopping = true
        segment-seconds = 2.5
        scores = true
        overwrite = false
        on-error = 'skip'
    ";

    #[test]
    fn keys_are_flags_and_the_command_line_wins() {
        let args = translate(WHOLE, "").unwrap();
        assert_eq!(
            (args.run.model.to_str(), args.run.output.to_str()),
            (Some("m"), Some("o.h5"))
        );
        assert_eq!(args.target, ["fra_Latn", "deu_Latn"]);
        assert_eq!(
            (
                args.generation.num_beams,
                args.generation.length_penalty,
                args.run.segment_seconds
            ),
            (Some(4), Some(-1.0), 2.5)
        );
        assert_eq!(
            (args.generation.early_stopping, args.run.on_error),
            (Some(EarlyStopping::True), OnError::Skip)
        );
        assert!(args.generation.scores && !args.run.overwrite);

        let args = translate(
            WHOLE,
            "--num-beams 1 --target spa_Latn --scores=false --overwrite -m other",
        )
        .unwrap();
        assert_eq!(
            (args.generation.num_beams, args.target),
            (Some(1), vec!["spa_Latn".to_owned()])
        );
        assert!(!args.generation.scores && args.run.overwrite);
        assert_eq!(args.run.model, Path::new("other"));
        assert_eq!(args.source.as_deref(), Some("eng_Latn"));
    }

    #[test]
    fn a_number_or_a_word_where_both_are_taken() {
        use crate::cli::generation::BatchTokens;
        for (toml, taken) in [
            ("batch-tokens = 512", BatchTokens::Tokens(512)),
            ("batch-tokens = 'auto'", BatchTokens::Auto),
        ] {
            let args = translate(toml, "-m m -o o").expect(toml);
            assert_eq!(args.generation.batch_tokens, taken, "{toml}");
        }
    }

    #[test]
    fn a_flag_that_may_be_repeated_takes_a_list() {
        let stop = |toml: &str, line: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("job.toml");
            fs::write(&path, toml).unwrap();
            let path = path.display().to_string();
            let start = ["sluice", "generate", "in.txt", "-m", "m", "-o", "o", "--config", &path];
            match parse(start.iter().chain(line)).map(|cli| cli.command) {
                Ok(Command::Generate(arguments)) => Ok(arguments.stop),
                Ok(_) => panic!("not generate"),
                Err(error) => Err(crate::cli::exit::message(&error)),
            }
        };
        for (toml, line, taken) in [
            ("stop = ['a, b', \"\\n\"]", &[][..], &["a, b", "\n"][..]),
            ("stop = 'a'", &[], &["a"]),
            ("stop = []", &[], &[]),
            ("stop = ['--', '-x']", &[], &["--", "-x"]),
            ("stop = ['a', 'b']", &["--stop", "c", "--stop=d"], &["c", "d"]),
            ("stop = ['a', 'b']", &["--min-new-tokens", "1"], &["a", "b"]),
        ] {
            assert_eq!(stop(toml, line).unwrap(), taken, "{toml} {line:?}");
        }
        for (toml, part) in [
            (
                "stop = ['a', 3]",
                "found integer 3, expected a string or a list of strings",
            ),
            ("stop = [['a']]", "found array"),
            ("stop = true", "a list of strings"),
        ] {
            let message = stop(toml, &[]).unwrap_err();
            assert!(message.contains("key \"stop\"") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn what_is_wrong_names_file_and_key() {
        for (toml, parts) in [
            ("num-beam = 4", ["unknown key \"num-beam\"", "\"num-beams\""]),
            ("num-beams = '4'", ["key \"num-beams\"", "expected a whole number"]),
            ("num-beams = 0", ["key \"num-beams\"", "from 1 to 1024"]),
            ("num-beams = 1.5", ["key \"num-beams\"", "float"]),
            ("length_penalty = 'x'", ["key \"length_penalty\"", "a number"]),
            ("scores = 'yes'", ["key \"scores\"", "true or false"]),
            ("scores = 1", ["key \"scores\"", "true or false"]),
            ("target = [1]", ["key \"target\"", "list of strings"]),
            ("references = ['a', 'b,c']", ["key \"references\"", "commas divide"]),
            ("model = 3", ["key \"model\"", "a string in quotes"]),
            ("dtype = 'f16'", ["key \"dtype\"", "bf16"]),
            ("input = 'a'", ["key \"input\"", "command line"]),
            ("config = 'a'", ["key \"config\"", "another"]),
            ("[translate]\nmodel = 'm'", ["unknown key \"translate\"", "long flags"]),
            ("a = 1\nb = ", ["job.toml", "line 2"]),
        ] {
            let message = crate::cli::exit::message(&translate(toml, "-m m -o o").expect_err(toml));
            assert!(parts.iter().all(|part| message.contains(part)), "{toml}: {message}");
            assert!(message.contains("job.toml") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = parse(["sluice", "translate", "in", "--config=none.toml"]).unwrap_err();
        assert!(
            crate::cli::exit::message(&error).contains("--config none.toml"),
            "{error:#}"
        );
    }

    #[test]
    fn only_a_real_flag_names_the_file() {
        let arguments = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(named_file(&arguments("a --config b --config=c")), Some("c".into()));
        assert_eq!(named_file(&arguments("a -- --config b")), None);
        assert_eq!(named_file(&arguments("a --config")), None);
    }
}
