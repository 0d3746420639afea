//! Checks of options against each other, against the number of ranks, and against the folders they name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};

use super::generation::GenerationArgs;
use super::run::RunArgs;
use super::score::Prefix;
use super::study::BufferArgs;
use super::{GenerateArgs, ScoreArgs, TranslateArgs};

/// Checks the options of `translate` against each other, without looking at files.
///
/// # Errors
/// Names both flags, their values and the cure.
pub fn translate(args: &TranslateArgs) -> Result<()> {
    generation(&args.generation)?;
    let mut targets = BTreeSet::new();
    for target in &args.target {
        ensure!(
            targets.insert(target),
            "--target names {target} twice: each language once"
        );
    }
    // Without --target each row names its own, and one file of references has a line for each row.
    let wanted = args.target.len().max(1);
    let found = args.references.len();
    ensure!(
        found == 0 || found == wanted,
        "--references names {found} files, but there are {wanted} targets: give one file for each target, in the \
         order of --target, e.g. ref.fra,ref.deu"
    );
    ensure!(
        found == 0 || !args.run.no_merge,
        "--references with --no-merge: BLEU and chrF are computed as the rows are merged; leave one of them out"
    );
    run(&args.run)
}

/// Checks the options of `score` against each other, without looking at files.
///
/// # Errors
/// As [`translate`].
pub fn score(args: &ScoreArgs) -> Result<()> {
    if let (Some(window), Some(stride)) = (args.window, args.stride) {
        ensure!(
            stride <= window,
            "--stride {stride} is above --window {window}: tokens between two windows would have no score; give at most {window}"
        );
    }
    ensure!(
        args.window != Some(1) || args.prefix != Prefix::None,
        "--window 1 without a prefix scores nothing: the first token of a window has nothing before it; give 2 or more"
    );
    let languages = [("--source", &args.source), ("--target", &args.target)];
    if let Some((flag, _)) = languages.iter().find(|(_, code)| code.is_some() && !args.pairs) {
        bail!("{flag} is the language of a half of --pairs; leave it out, or give --pairs");
    }
    for (flag, given) in [
        ("--window", args.window.is_some()),
        ("--stride", args.stride.is_some()),
        ("--prefix", args.prefix != Prefix::None),
    ] {
        ensure!(
            !(given && args.pairs),
            "{flag} with --pairs: a target is read whole, behind the decoder's start token; leave it out"
        );
    }
    run(&args.run)
}

/// Checks the options of `generate` against each other, without looking at files.
///
/// # Errors
/// As [`translate`].
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let beams = args.generation.num_beams.unwrap_or(1);
    let draws = [
        ("--temperature", args.temperature.is_some_and(|t| t > 0.0)),
        ("--top-k", args.top_k.is_some()),
        ("--top-p", args.top_p.is_some()),
        ("--min-p", args.min_p.is_some()),
    ];
    for (flag, given) in draws {
        ensure!(
            !given || beams == 1,
            "{flag} with --num-beams {beams}: beams are searched, not drawn; leave one of them out"
        );
        ensure!(
            !given || args.temperature != Some(0.0),
            "{flag} with --temperature 0, which takes the likeliest token: leave one of them out"
        );
    }
    ensure!(
        args.seed.is_none() || draws.iter().any(|(_, given)| *given),
        "--seed without sampling changes nothing: give --temperature, --top-k, --top-p or --min-p too"
    );
    generation(&args.generation)?;
    run(&args.run)
}

/// Checks how to search.
///
/// # Errors
/// As [`translate`].
pub fn generation(args: &GenerationArgs) -> Result<()> {
    if let (Some(least), Some(most)) = (args.min_new_tokens, args.max_new_tokens) {
        ensure!(
            least <= most,
            "--min-new-tokens {least} is above --max-new-tokens {most}: no output could have both; lower the one or \
             raise the other"
        );
    }
    Ok(())
}

/// Checks the options that all jobs over a corpus have.
///
/// # Errors
/// As [`translate`].
pub fn run(args: &RunArgs) -> Result<()> {
    if args.output.extension().is_some_and(|extension| extension == "parts") {
        bail!(
            "--output {}: a name ending in .parts is kept for a running job's folder; name the file itself, e.g. out.h5",
            args.output.display()
        );
    }
    Ok(())
}

/// Checks the threads of a rank against the processors it is bound to.
///
/// # Errors
/// More than eight to a processor: they would only wait for each other.
pub fn threads(wanted: Option<usize>, processors: usize) -> Result<()> {
    let most = 8 * processors.max(1);
    match wanted {
        Some(n) if n > most => bail!(
            "--threads {n}: this rank is bound to {processors} processors; give at most {most}, or leave it out for one each"
        ),
        _ => Ok(()),
    }
}

/// Checks the files and folders that the options name; one rank does it.
///
/// # Errors
/// Names the flag and the path: an output that is an input, an output whose folder is missing.
pub fn files(args: &RunArgs, inputs: &[PathBuf]) -> Result<()> {
    let files = || inputs.iter().filter(|input| input.as_os_str() != "-");
    for input in files() {
        differ("INPUT", input, "--output", &args.output)?;
    }
    writable_place("--output", &args.output)?;
    if let Some(report) = &args.report {
        differ("--output", &args.output, "--report", report)?;
        for input in files() {
            differ("INPUT", input, "--report", report)?;
        }
        writable_place("--report", report)?;
    }
    Ok(())
}

/// Checks files of references against the output; one rank does it.
///
/// # Errors
/// Names the flag and the path: a file that is missing, or is the output.
pub fn references(references: &[PathBuf], output: &Path) -> Result<()> {
    for reference in references {
        differ("--references", reference, "--output", output)?;
        ensure!(
            reference.exists(),
            "--references {}: no such file; give a text file with a line for each line of the input",
            reference.display()
        );
    }
    Ok(())
}

/// Checks the files and folders that the options of `study buffer` name.
///
/// # Errors
/// As [`files`]; also an output that is there already, and isn't to be replaced.
pub fn study(args: &BufferArgs) -> Result<()> {
    let (trace, output) = (&args.trace, &args.output);
    differ("--trace", trace, "--output", output)?;
    for (flag, input) in [("--placement", &args.placement), ("--model", &args.model)] {
        if let Some(input) = input {
            differ(flag, input, "--output", output)?;
        }
    }
    writable_place("--output", output)?;
    ensure!(
        args.overwrite || !output.exists(),
        "--output {} is there already: --overwrite replaces it, or choose another name",
        output.display()
    );
    if let Some(folder) = args.figures.as_ref().filter(|folder| folder.exists()) {
        ensure!(
            folder.is_dir(),
            "--figures {} is a file; name a folder",
            folder.display()
        );
    }
    Ok(())
}

/// The number of groups that ranks form, each holding the model once, when `expert_parallel` ranks share a copy.
///
/// # Errors
/// When the ranks can't be divided so: names the numbers that would do.
pub fn groups(ranks: usize, expert_parallel: Option<usize>) -> Result<usize> {
    let size = expert_parallel.unwrap_or(ranks);
    if size == 0 || ranks == 0 || !ranks.is_multiple_of(size) {
        let possible: Vec<String> = (1..=ranks)
            .filter(|size| ranks.is_multiple_of(*size))
            .map(|size| size.to_string())
            .collect();
        bail!(
            "--expert-parallel {size} doesn't divide the {ranks} ranks of this run: possible are {}",
            possible.join(", ")
        );
    }
    Ok(ranks / size)
}

/// Refuses two paths that lead to one file, through links too.
fn differ(flag: &str, path: &Path, other_flag: &str, other: &Path) -> Result<()> {
    let same_file = match (fs::metadata(path), fs::metadata(other)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => path == other,
    };
    ensure!(
        !same_file,
        "{other_flag} {} is the same file as {flag} {}: the one would destroy the other; choose another name",
        other.display(),
        path.display()
    );
    Ok(())
}

/// Refuses a path whose folder isn't there, or that is itself a folder.
fn writable_place(flag: &str, path: &Path) -> Result<()> {
    ensure!(
        !path.is_dir(),
        "{flag} {} is a folder; name a file in it",
        path.display()
    );
    ensure!(
        path.file_name().is_some(),
        "{flag} {}: this is no file name",
        path.display()
    );
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let found = fs::metadata(folder).with_context(|| {
        format!(
            "{flag} {}: the folder {} isn't there; make it first (mkdir -p)",
            path.display(),
            folder.display()
        )
    })?;
    ensure!(
        found.is_dir(),
        "{flag} {}: {} is no folder",
        path.display(),
        folder.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{parse, Command};

    fn translate(arguments: &str) -> Result<TranslateArgs> {
        let start = ["sluice", "translate", "-m", "model"];
        match parse(start.into_iter().chain(arguments.split_whitespace()))?.command {
            Command::Translate(arguments) => Ok(*arguments),
            _ => panic!("not translate"),
        }
    }

    fn refused(arguments: &str) -> String {
        crate::cli::exit::message(&translate(arguments).expect_err(arguments))
    }

    #[test]
    fn numbers_have_ranges() {
        for (arguments, parts) in [
            ("in -o o --num-beams 0", ["--num-beams", "from 1 to 1024"]),
            ("in -o o --num-beams two", ["--num-beams", "whole number"]),
            ("in -o o --batch-tokens 0", ["--batch-tokens", "from 1"]),
            ("in -o o --batch-tokens many", ["--batch-tokens", "or auto"]),
            ("in -o o --threads 0", ["--threads", "from 1"]),
            ("in -o o --max-length 1", ["--max-length", "from 2"]),
            ("in -o o --length-penalty nan", ["--length-penalty", "a number"]),
            ("in -o o --segment-seconds 0", ["--segment-seconds", "from 0.1"]),
            ("in -o o --expert-parallel 0", ["--expert-parallel", "from 1"]),
            ("in -o o --early-stopping maybe", ["--early-stopping", "never"]),
            ("in -o o --target", ["--target", "value is required"]),
            ("in -o o --target ,", ["--target", "missing"]),
        ] {
            let message = refused(arguments);
            assert!(
                parts.iter().all(|part| message.contains(part)),
                "{arguments}: {message}"
            );
            assert!(message.starts_with("sluice: error: "), "{message}");
        }
    }

    #[test]
    fn options_are_held_against_each_other() {
        let message = refused("in -o o --min-new-tokens 9 --max-new-tokens 8");
        assert!(
            message.contains("--min-new-tokens 9 is above --max-new-tokens 8"),
            "{message}"
        );
        assert!(translate("in -o o --min-new-tokens 8 --max-new-tokens 8").is_ok());
        assert!(refused("in -o o --target fra_Latn,fra_Latn").contains("fra_Latn twice"));
        assert!(refused("in -o o --target a,b --references r").contains("1 files, but there are 2 targets"));
        assert!(refused("in -o o --references r,s").contains("2 files, but there are 1 targets"));
        assert!(translate("in -o o --target a,b --references r,s").is_ok());
        assert!(refused("in -o o.h5.parts").contains(".parts"));
    }

    #[test]
    fn switches_can_be_taken_back_and_lists_are_replaced() {
        let args = translate("in -o o --scores --scores=false --target a,b --target c --no-merge").unwrap();
        assert!(!args.generation.scores && args.run.no_merge);
        assert_eq!(args.target, ["c"]);
        assert_eq!(translate("-o o --scores in").unwrap().inputs, [Path::new("in")]);
        assert_eq!(
            translate("- -o o --length-penalty -1")
                .unwrap()
                .generation
                .length_penalty,
            Some(-1.0)
        );
    }

    #[test]
    fn groups_divide_the_ranks() {
        assert_eq!(groups(8, None).unwrap(), 1);
        assert_eq!(groups(8, Some(2)).unwrap(), 4);
        assert_eq!(groups(3, Some(1)).unwrap(), 3);
        let message = groups(6, Some(4)).unwrap_err().to_string();
        assert!(
            message.contains("--expert-parallel 4") && message.contains("1, 2, 3, 6"),
            "{message}"
        );
        assert!(groups(2, Some(4)).is_err());
        assert!(groups(2, Some(0)).is_err());
    }

    #[test]
    fn an_output_must_not_be_an_input_and_needs_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("in"), "a\n").unwrap();
        std::os::unix::fs::symlink(path("in"), path("link")).unwrap();
        let check = |arguments: String| {
            let args = translate(&arguments).unwrap();
            let files = files(&args.run, &args.inputs);
            files
                .and_then(|()| references(&args.references, &args.run.output))
                .map_err(|error| format!("{error:#}"))
        };
        let refused = |arguments: String| check(arguments.clone()).expect_err(&arguments);
        assert_eq!(check(format!("{} -o {}", path("in"), path("out.h5"))), Ok(()));
        assert!(refused(format!("{0} -o {0}", path("in"))).contains("--output"));
        assert!(refused(format!("{} -o {}", path("in"), path("link"))).contains("same file"));
        assert!(refused(format!("{} -o {}", path("in"), path("no/out.h5"))).contains("mkdir"));
        assert!(refused(format!("{} -o {}", path("in"), path("in/out.h5"))).contains("no folder"));
        assert!(refused(format!("{} -o {}", path("in"), folder.path().display())).contains("is a folder"));
        assert!(refused(format!("{0} -o {1} --references {1}", path("in"), path("x"))).contains("--references"));
        assert!(
            refused(format!("{} -o {} --references {}", path("in"), path("x"), path("y"))).contains("no such file")
        );
        assert!(refused(format!("{0} -o {1} --report {1}", path("in"), path("x"))).contains("--report"));
        assert!(refused(format!("{0} -o {1} --report {0}", path("in"), path("x"))).contains("--report"));
        assert_eq!(check(format!("- -o {} --references {}", path("x"), path("in"))), Ok(()));
    }
}
