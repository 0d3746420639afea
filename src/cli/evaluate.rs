//! The options of `sluice evaluate`.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use clap::{ArgAction, Args, ValueEnum};

use crate::metrics::bleu::{BleuOptions, Smoothing};
use crate::metrics::measure::Measure;
use crate::metrics::ter::TerOptions;
use crate::metrics::tokenize::{Pieces, Tokenizer};

/// What stands under `sluice evaluate --help`.
pub const AFTER_HELP: &str = "\
Every file is compared with the same references, so that systems stand side by side. Blank and failed rows count as empty
outputs. BLEU, chrF and TER are sacreBLEU's to the last digit, ROUGE (in percent) is rouge-score's F-measure. Outputs of
`sluice score` need no references: their log-probabilities and counts are added up over all files.
Exit codes: 0 done, 1 done, but some rows of the files had failed, 2 refused (see sluice --help).

Examples:
  sluice evaluate out.h5 --references ref.txt
  sluice evaluate greedy.h5 beam4.h5 --references ref1.txt ref2.txt --metrics bleu,chrf++,ter
  sluice evaluate out.h5 --references fra_Latn=ref.fra deu_Latn=ref.deu --json
  sluice evaluate out.h5 --target zho_Hans --references ref.zho --tokenize zh
  sluice evaluate scores-*.h5";

/// Arguments of `sluice evaluate`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct EvaluateArgs {
    /// Output files of finished runs: translated or generated texts, or scored ones
    #[arg(value_name = "OUT.h5", required = true, num_args = 1.., help_heading = "Input and output")]
    pub paths: Vec<PathBuf>,

    /// References, a line per input line (also .gz, .zst, .tsv, .jsonl); several files are several references of each line;
    /// CODE=FILE is for rows of that target language
    #[arg(long, short, value_name = "[CODE=]FILE", value_delimiter = ',', num_args = 1.., action = ArgAction::Append)]
    #[arg(help_heading = "Input and output")]
    pub references: Vec<PathBuf>,

    /// Only rows of this target language, e.g. fra_Latn
    #[arg(long, value_name = "CODE", help_heading = "Input and output")]
    pub target: Option<String>,

    /// Print JSON instead of a table: every figure unrounded, with its signature and parts
    #[arg(long, help_heading = "Input and output")]
    pub json: bool,

    /// What to compute. Default: bleu,chrf,chrf++
    #[arg(long, value_enum, value_name = "NAME,...", value_delimiter = ',', num_args = 1.., help_heading = "Metrics")]
    pub metrics: Vec<MetricName>,

    /// Tokens of BLEU: 13a, intl, zh, char, none, or spm:FILE for the pieces of a sentencepiece .model (sacreBLEU's flores200 and
    /// the like) or a tokenizer.json
    #[arg(long, value_name = "TOKENIZER", default_value = "13a", value_parser = tokenize, help_heading = "Metrics")]
    pub tokenize: Tokenize,

    /// BLEU and chrF: upper and lower case are the same
    #[arg(long, help_heading = "Metrics")]
    pub lowercase: bool,

    /// BLEU: how n-grams without a match count
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = SmoothMethod::Exp, help_heading = "Metrics")]
    pub smooth_method: SmoothMethod,

    /// BLEU: value of the methods floor (default 0.1) and add-k (default 1)
    #[arg(long, value_name = "X", value_parser = not_negative, help_heading = "Metrics")]
    pub smooth_value: Option<f64>,

    /// BLEU: leave out orders of n-grams that the outputs are too short for
    #[arg(long, help_heading = "Metrics")]
    pub effective_order: bool,

    /// TER: upper and lower case differ
    #[arg(long, help_heading = "Metrics")]
    pub ter_case_sensitive: bool,

    /// TER: set punctuation apart from words, as Tercom's -N
    #[arg(long, help_heading = "Metrics")]
    pub ter_normalized: bool,

    /// TER: leave punctuation out
    #[arg(long, help_heading = "Metrics")]
    pub ter_no_punct: bool,

    /// TER: with --ter-normalized Chinese and Japanese characters are words, with --ter-no-punct their punctuation is left
    /// out too
    #[arg(long, help_heading = "Metrics")]
    pub ter_asian_support: bool,

    /// ROUGE: count stems of English words (Porter), as use_stemmer of rouge-score
    #[arg(long, help_heading = "Metrics")]
    pub stem: bool,
}

/// A metric that compares texts with references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricName {
    /// BLEU.
    Bleu,
    /// chrF2: characters.
    Chrf,
    /// chrF2++: characters, words and pairs of words.
    #[value(name = "chrf++")]
    ChrfPlusPlus,
    /// Translation edit rate: less is better.
    Ter,
    /// ROUGE-1, -2, -L and -Lsum.
    Rouge,
}

/// Tokens of BLEU.
#[derive(Debug, Clone, PartialEq)]
pub enum Tokenize {
    /// By a tokenizer of this name.
    Named(&'static str),
    /// The pieces of a `.model` or a `tokenizer.json`.
    Spm(PathBuf),
}

/// How n-grams without a match count in BLEU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SmoothMethod {
    /// Half a match, then a quarter, and so on.
    Exp,
    /// As a small value.
    Floor,
    /// A value is added to every order but the first.
    AddK,
    /// Not at all.
    None,
}

impl EvaluateArgs {
    /// The metrics asked for, each once.
    fn names(&self) -> Vec<MetricName> {
        use MetricName::{Bleu, Chrf, ChrfPlusPlus};
        let mut names = Vec::new();
        for name in &self.metrics {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        if names.is_empty() {
            names = vec![Bleu, Chrf, ChrfPlusPlus];
        }
        names
    }

    /// What is to be computed, in the order asked for.
    ///
    /// # Errors
    /// The file of `--tokenize` can't be read.
    pub fn measures(&self) -> Result<Vec<Measure>> {
        let tokenizer = match &self.tokenize {
            Tokenize::Named(name) => Tokenizer::of(name).unwrap_or_default(),
            Tokenize::Spm(path) => Tokenizer::Pieces(Pieces::load(path)?),
        };
        let value = |default| self.smooth_value.unwrap_or(default);
        let bleu = BleuOptions {
            tokenizer,
            lowercase: self.lowercase,
            effective_order: self.effective_order,
            smoothing: match self.smooth_method {
                SmoothMethod::Exp => Smoothing::Exp,
                SmoothMethod::Floor => Smoothing::Floor(value(Smoothing::FLOOR)),
                SmoothMethod::AddK => Smoothing::AddK(value(Smoothing::ADD_K)),
                SmoothMethod::None => Smoothing::None,
            },
        };
        let ter = TerOptions {
            case_sensitive: self.ter_case_sensitive,
            normalized: self.ter_normalized,
            no_punct: self.ter_no_punct,
            asian_support: self.ter_asian_support,
        };
        let measure = |name| match name {
            MetricName::Bleu => Measure::bleu(bleu.clone()),
            MetricName::Chrf => Measure::chrf(0, self.lowercase),
            MetricName::ChrfPlusPlus => Measure::chrf(2, self.lowercase),
            MetricName::Ter => Measure::ter(ter),
            MetricName::Rouge => Measure::rouge(self.stem),
        };
        Ok(self.names().into_iter().map(measure).collect())
    }
}

/// Checks options against each other.
///
/// # Errors
/// Names an option that would change nothing.
pub fn check(args: &EvaluateArgs) -> Result<()> {
    use MetricName::{Bleu, Chrf, ChrfPlusPlus, Rouge, Ter};
    let names = args.names();
    for (flag, given, of) in [
        ("--tokenize", args.tokenize != Tokenize::Named("13a"), &[Bleu][..]),
        ("--lowercase", args.lowercase, &[Bleu, Chrf, ChrfPlusPlus]),
        ("--smooth-method", args.smooth_method != SmoothMethod::Exp, &[Bleu]),
        ("--smooth-value", args.smooth_value.is_some(), &[Bleu]),
        ("--effective-order", args.effective_order, &[Bleu]),
        ("--ter-case-sensitive", args.ter_case_sensitive, &[Ter]),
        ("--ter-normalized", args.ter_normalized, &[Ter]),
        ("--ter-no-punct", args.ter_no_punct, &[Ter]),
        ("--ter-asian-support", args.ter_asian_support, &[Ter]),
        ("--stem", args.stem, &[Rouge]),
    ] {
        ensure!(
            !given || of.iter().any(|name| names.contains(name)),
            "{flag} changes nothing without --metrics {}: name it there, or leave {flag} out",
            of.iter()
                .filter_map(|name| name.to_possible_value())
                .map(|value| value.get_name().to_owned())
                .collect::<Vec<_>>()
                .join(" or ")
        );
    }
    ensure!(
        args.smooth_value.is_none() || matches!(args.smooth_method, SmoothMethod::Floor | SmoothMethod::AddK),
        "--smooth-value belongs to --smooth-method floor or add-k: name one of them, or leave it out"
    );
    ensure!(
        !args.ter_asian_support || args.ter_normalized || args.ter_no_punct,
        "--ter-asian-support changes nothing without --ter-normalized or --ter-no-punct"
    );
    Ok(())
}

/// A parser of `--tokenize`.
fn tokenize(text: &str) -> Result<Tokenize, String> {
    if let Some(file) = text.strip_prefix("spm:").filter(|file| !file.is_empty()) {
        return Ok(Tokenize::Spm(file.into()));
    }
    let name = Tokenizer::NAMES.into_iter().find(|name| *name == text);
    name.map(Tokenize::Named)
        .ok_or_else(|| "it must be 13a, intl, zh, char, none or spm:FILE".to_owned())
}

/// A parser of numbers from 0 on.
fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("it must be a number from 0 on".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{parse, Command};

    fn evaluate(line: &str) -> Result<super::EvaluateArgs, String> {
        let arguments = ["sluice", "evaluate"].into_iter().chain(line.split_whitespace());
        match parse(arguments).map_err(|e| format!("{e:#}"))?.command {
            Command::Evaluate(arguments) => Ok(*arguments),
            _ => panic!("not evaluate"),
        }
    }

    #[test]
    fn references_and_metrics_are_lists() {
        let args = evaluate("a.h5 b.h5 --references r s,t --metrics chrf++,ter,chrf++ --json").unwrap();
        let names = |paths: &[std::path::PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(names(&args.paths), ["a.h5", "b.h5"]);
        assert_eq!(names(&args.references), ["r", "s", "t"]);
        let figures: Vec<String> = args
            .measures()
            .unwrap()
            .iter()
            .flat_map(|m| m.figures())
            .map(|f| f.name)
            .collect();
        assert_eq!(figures, ["chrF2++", "TER"]);
        assert_eq!(evaluate("a.h5").unwrap().measures().unwrap().len(), 3);
    }

    #[test]
    fn options_reach_the_signatures() {
        let line =
            "a --metrics bleu,chrf,ter,rouge --tokenize intl --lowercase --smooth-method floor --smooth-value 0.25 \
                    --effective-order --ter-case-sensitive --ter-normalized --ter-no-punct --ter-asian-support --stem";
        let measures = evaluate(line).unwrap().measures().unwrap();
        let signatures: Vec<String> = measures.iter().map(|m| m.figures()[0].signature.clone()).collect();
        for (signature, part) in signatures.iter().zip([
            "|case:lc|eff:yes|tok:intl|smooth:floor[0.25]|",
            "|case:lc|eff:yes|nc:6|nw:0|",
            "|case:mixed|tok:tercom|norm:yes|punct:no|asian:yes|",
            "|stem:yes|",
        ]) {
            assert!(signature.contains(part), "{signature}");
        }
        let added = evaluate("a --smooth-method add-k").unwrap().measures().unwrap();
        assert!(added[0].figures()[0].signature.contains("|smooth:add-k[1.00]|"));
    }

    #[test]
    fn what_would_change_nothing_is_refused() {
        for (line, part) in [
            ("a --stem", "--metrics rouge"),
            ("a --metrics ter --lowercase", "bleu or chrf or chrf++"),
            ("a --smooth-value 1", "floor or add-k"),
            ("a --metrics ter --ter-asian-support", "--ter-normalized"),
            ("a --tokenize words", "spm:FILE"),
            ("a --tokenize spm:", "spm:FILE"),
            ("a --metrics meteor", "chrf++"),
            ("a --smooth-method floor --smooth-value -1", "from 0 on"),
            ("--references r", "OUT.h5"),
        ] {
            let error = evaluate(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
