//! Sluice's product kernels beside other libraries and beside what the machine can do. `./x bench kernels` starts it; its
//! `--help` says what the table shows.
mod case;
#[path = "../../ceiling/mod.rs"]
mod ceiling;
mod contender;
mod library;
mod measure;

use anyhow::{bail, Context, Result};
use sluicegate::device::{Cpu, Dtype, Linear};

use case::Case;
use ceiling::{Memory, Unit};
use contender::{best_of, expected, pack, sluice, Data};
use library::{Library, OpenBlas};
use measure::{sample, Spread};

/// A precision of ours: its name, the instruction its products consist of, and the share of that instruction's peak that
/// they are to reach at 512 rows an expert.
const KINDS: &[(Dtype, &str, Unit, Option<f64>)] = &[
    (Dtype::F32, "f32", Unit::Fma, Some(0.75)),
    (Dtype::Bf16, "bf16", Unit::DotPairs, Some(0.65)),
];
/// The share of the read bandwidth that products of 1 to 4 rows an expert are to reach.
const READING: f64 = 0.7;

/// What the command line says.
struct Options {
    pairs: usize,
    threads: Vec<usize>,
    ours_only: bool,
    /// A line is timed if it holds all of them.
    words: Vec<String>,
}

/// What was found for one line.
struct Line {
    kind: &'static str,
    name: String,
    case: Case,
    of_peak: Option<Spread>,
    of_reading: Spread,
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    // Both before the library is loaded: it may take this CPU for an older one, and its threads would spin long after a call.
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    for (name, value, wanted) in [
        ("OPENBLAS_CORETYPE", "SKYLAKEX", avx512),
        ("OPENBLAS_THREAD_TIMEOUT", "20", true),
    ] {
        if wanted && std::env::var_os(name).is_none() {
            std::env::set_var(name, value);
        }
    }
    let libraries = libraries(&options);
    let memory = Memory::new();
    print_machine(&options.threads, &memory);
    println!(
        "\n| dtype | threads | product | weights from | us | GFLOP/s | GB/s | % of peak | % of reading | {} |",
        libraries.iter().map(Library::name).collect::<Vec<_>>().join(" | ")
    );
    println!("|{}", "---|".repeat(9 + libraries.len()));
    let mut lines = Vec::new();
    for &threads in &options.threads {
        // A thread of its own for each number: it becomes the first worker of the pool that the libraries use.
        let timed = std::thread::scope(|scope| {
            scope
                .spawn(|| time_all(&options, &libraries, &memory, threads))
                .join()
                .expect("no panic while timing")
        });
        lines.extend(timed?);
    }
    print_targets(&lines);
    Ok(())
}

impl Options {
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Options> {
        let mut options = Options {
            pairs: 5,
            threads: vec![1, 2],
            ours_only: false,
            words: Vec::new(),
        };
        while let Some(word) = given.next() {
            match word.as_str() {
                "--pairs" => options.pairs = numbers(&word, given.next())?[0],
                "--threads" => options.threads = numbers(&word, given.next())?,
                "--ours-only" => options.ours_only = true,
                flag if flag.starts_with('-') => {
                    bail!("unknown option {flag}: expected --pairs N, --threads 1,2, --ours-only or words of a line")
                }
                _ => options.words.push(word),
            }
        }
        Ok(options)
    }
}

/// Numbers above 0, separated by commas.
fn numbers(flag: &str, value: Option<String>) -> Result<Vec<usize>> {
    let value = value.unwrap_or_default();
    let parsed: Result<Vec<usize>, _> = value.split(',').map(str::parse).collect();
    match parsed {
        Ok(found) if !found.contains(&0) => Ok(found),
        _ => bail!("{flag}: found {value:?}, expected numbers above 0 such as 1,2"),
    }
}

fn libraries(options: &Options) -> Vec<Library> {
    if options.ours_only {
        return Vec::new();
    }
    let mut libraries = vec![Library::Gemm, Library::Faer];
    match OpenBlas::load() {
        Ok(found) => libraries.push(Library::OpenBlas(found)),
        Err(e) => eprintln!("{e:#}"),
    }
    libraries
}

fn print_machine(threads: &[usize], memory: &Memory) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |key: &str| {
        cpuinfo
            .lines()
            .find(|l| l.starts_with(key))
            .and_then(|l| l.split(": ").nth(1))
            .unwrap_or("unknown")
    };
    println!(
        "CPU {}, family {}, model {}; load average {}",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        read("/proc/loadavg").trim()
    );
    for &threads in threads {
        let best = |measure: &dyn Fn() -> f64| (0..5).map(|_| measure()).fold(0.0, f64::max) * 1e-9;
        for unit in Unit::ALL.into_iter().filter(|unit| unit.peak(threads).is_some()) {
            println!(
                "{threads} threads, {}: {:.0} GFLOP/s",
                unit.name(),
                best(&|| unit.peak(threads).unwrap_or_default())
            );
        }
        println!(
            "{threads} threads, reading memory: {:.1} GB/s",
            best(&|| memory.bandwidth(threads))
        );
    }
}

fn time_all(options: &Options, libraries: &[Library], memory: &Memory, threads: usize) -> Result<Vec<Line>> {
    // What the libraries do in parallel goes to this pool, of which this thread is one.
    let _pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .build()?;
    let cpu = Cpu::new(threads)?;
    let mut lines = Vec::new();
    for &(dtype, kind, unit, _) in KINDS {
        for case in Case::all() {
            let from = if case.from_memory { "memory" } else { "cache" };
            let name = format!("{kind} | {threads} | {} | {from}", case.name());
            if options.words.iter().all(|word| name.contains(word)) {
                let time = Timing {
                    options,
                    libraries,
                    memory,
                    cpu: &cpu,
                    unit,
                };
                lines.push(time.line(kind, name, dtype, case)?);
            }
        }
    }
    Ok(lines)
}

/// What the timing of any line takes.
struct Timing<'a> {
    options: &'a Options,
    libraries: &'a [Library],
    memory: &'a Memory,
    cpu: &'a Cpu,
    unit: Unit,
}

impl Timing<'_> {
    /// Times all contenders in turn, round after round, and prints the line.
    fn line(&self, kind: &'static str, name: String, dtype: Dtype, case: Case) -> Result<Line> {
        let (data, threads) = (Data::of(&case), self.cpu.threads());
        let sets = pack(&case, &data, dtype)?;
        let bytes: usize = sets[0]
            .iter()
            .zip(&case.rows)
            .filter(|(_, rows)| **rows > 0)
            .map(|(w, _)| Linear::bytes(w))
            .sum();
        let mut contenders = vec![sluice(self.cpu, &case, &data, &sets)];
        // The libraries' products are float32.
        if dtype == Dtype::F32 {
            let ours = expected(self.cpu, &case, &data)?;
            for library in self.libraries {
                contenders.push(best_of(library, threads, &case, &data, &ours).with_context(|| name.clone())?);
            }
        }
        let (mut seconds, mut of_peak, mut of_reading) = (vec![Vec::new(); contenders.len()], Vec::new(), Vec::new());
        for _ in 0..self.options.pairs {
            for (timed, contender) in seconds.iter_mut().zip(&mut contenders) {
                timed.push(sample(&mut contender.run));
            }
            let own = seconds[0][seconds[0].len() - 1];
            of_peak.extend(
                self.unit
                    .peak(threads)
                    .map(|peak| 100.0 * case.operations() / own / peak),
            );
            of_reading.push(100.0 * bytes as f64 / own / self.memory.bandwidth(threads));
        }
        let ours = Spread::of(seconds[0].iter().copied()).median;
        let ratios = seconds[1..]
            .iter()
            .map(|theirs| Spread::of(theirs.iter().zip(&seconds[0]).map(|(t, o)| t / o)));
        let mut ratios: Vec<String> = ratios.map(|ratio| format!("{ratio:.2}")).collect();
        ratios.resize(self.libraries.len(), String::new());
        let of_peak = (!of_peak.is_empty()).then(|| Spread::of(of_peak));
        let of_reading = Spread::of(of_reading);
        let (gflops, gbytes) = (case.operations() / ours * 1e-9, bytes as f64 / ours * 1e-9);
        let peak = of_peak.map_or("-".to_string(), |share| format!("{share:.0}"));
        let reading = if case.is_bound_by_reading() {
            format!("{of_reading:.0}")
        } else {
            String::new()
        };
        println!(
            "| {name} | {:.1} | {gflops:.1} | {gbytes:.1} | {peak} | {reading} | {} |",
            ours * 1e6,
            ratios.join(" | ")
        );
        drop(contenders);
        Ok(Line {
            kind,
            name,
            case,
            of_peak,
            of_reading,
        })
    }
}

/// For each thing that is wanted, whether it was found in the lines that were timed.
fn print_targets(lines: &[Line]) {
    println!();
    for &(_, kind, _, target) in KINDS {
        let own = || lines.iter().filter(move |line| line.kind == kind);
        let arithmetic = own().filter(|line| line.case.is_bound_by_arithmetic());
        let shares = arithmetic
            .filter_map(|line| Some((line.of_peak?.median, &line.name[..])))
            .collect();
        if let Some(target) = target {
            print_target(&format!("{kind}, 512 rows an expert, of peak"), shares, target);
        }
        let reading = own().filter(|line| line.case.is_bound_by_reading());
        let shares = reading.map(|line| (line.of_reading.median, &line.name[..])).collect();
        print_target(
            &format!("{kind}, 1 to 4 rows an expert, of read bandwidth"),
            shares,
            READING,
        );
    }
}

/// `shares` in %, with the name of their line.
fn print_target(what: &str, shares: Vec<(f64, &str)>, target: f64) {
    let Some(&(least, name)) = shares.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return println!("{what}: not timed");
    };
    let target = 100.0 * target;
    let reached = shares.iter().filter(|(share, _)| *share >= target).count();
    let verdict = if reached == shares.len() { "MET" } else { "NOT MET" };
    let middle = Spread::of(shares.iter().map(|(share, _)| *share)).median;
    println!(
        "{what}: target {target:.0} % {verdict} by {reached} of {} lines; median {middle:.0} %, least {least:.0} % ({name})",
        shares.len()
    );
}
