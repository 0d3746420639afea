//! What is said of all rows together, computed as the finished file is put together: counts, BLEU and chrF.

use crate::cli::TranslateArgs;
use crate::corpus::Scan;
use crate::job::references::References;
use crate::job::run::Figures;
use crate::metrics::bleu::BleuOptions;
use crate::metrics::measure::{Figure, Measure};
use crate::results::{Judge, Metric, MetricValue, Row, Tally};
use anyhow::{ensure, Result};
use std::path::PathBuf;

/// One reference file for each target, a line for each row.
///
/// # Errors
/// Names the file and both numbers.
pub fn references(args: &TranslateArgs, scan: &Scan) -> Result<()> {
    let (files, targets) = (args.references.len(), args.target.len().max(1));
    ensure!(
        files == 0 || files == targets,
        "--references names {files} files for {targets} target languages: one for each, in their order"
    );
    for path in &args.references {
        let found = References::scan(path)?;
        ensure!(
            found.rows == scan.rows,
            "--references {}: {} lines for {} rows of {}",
            path.display(),
            found.rows,
            scan.rows,
            scan.name()
        );
    }
    Ok(())
}

/// Reads rows in order beside their references.
#[derive(Default)]
pub struct Quality {
    /// By target language, in the order of `--target`.
    targets: Vec<Target>,
    outputs: u64,
    /// Rows by status, and tokens.
    tally: Tally,
}

struct Target {
    name: String,
    references: References,
    measures: [Measure; 2],
}

impl Quality {
    /// For `targets` outputs a record, with a reference file for each or none at all.
    ///
    /// # Errors
    /// When a reference file cannot be read.
    pub fn new(targets: &[String], references: &[PathBuf]) -> Result<Quality> {
        let open = |(i, path): (usize, &PathBuf)| -> Result<Target> {
            let references = References::open(&References::scan(path)?)?;
            let name = targets
                .get(i)
                .filter(|_| targets.len() > 1)
                .map(|t| format!("_{t}"))
                .unwrap_or_default();
            Ok(Target {
                name,
                references,
                measures: [Measure::bleu(BleuOptions::default()), Measure::chrf(0, false)],
            })
        };
        let targets_read = references.iter().enumerate().map(open).collect::<Result<_>>()?;
        Ok(Quality {
            targets: targets_read,
            outputs: targets.len().max(1) as u64,
            ..Quality::default()
        })
    }

    /// BLEU and chrF of each target with references, under a name of the target where there are several.
    fn scores(&self) -> Vec<Figure> {
        let of = |t: &Target| -> Vec<Figure> {
            let mut figures: Vec<Figure> = t.measures.iter().flat_map(Measure::figures).collect();
            figures.iter_mut().for_each(|figure| figure.name += &t.name);
            figures
        };
        self.targets.iter().flat_map(of).collect()
    }
}

impl Judge for Quality {
    fn see(&mut self, rows: &[Row]) -> Result<()> {
        self.tally.see(rows)?;
        for row in rows {
            let (line, target) = (row.index / self.outputs, (row.index % self.outputs) as usize);
            if let Some(t) = self.targets.get_mut(target) {
                let reference = t.references.line(line)?;
                t.measures.iter_mut().for_each(|m| m.add(&row.output, &[reference]));
            }
        }
        Ok(())
    }

    fn metrics(&mut self) -> Result<Vec<Metric>> {
        let figures = self.scores();
        let number = |figure: &Figure| Metric {
            name: figure.name.clone(),
            value: MetricValue::Number(figure.score),
        };
        let signature = |figure: &Figure| Metric {
            name: format!("{}_signature", figure.name),
            value: MetricValue::Text(figure.signature.clone()),
        };
        let mut all: Vec<Metric> = figures.iter().map(number).collect();
        all.extend(figures.iter().map(signature));
        all.extend(self.tally.metrics()?);
        Ok(all)
    }
}

impl Figures for Quality {
    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn figures(&self) -> Vec<(String, f64)> {
        self.scores().into_iter().map(|f| (f.name, f.score)).collect()
    }

    fn judge(&mut self) -> &mut dyn Judge {
        self
    }
}
