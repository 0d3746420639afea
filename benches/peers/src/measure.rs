//! Timing, and what is made of several timings.
use std::fmt;
use std::time::Instant;

/// Seconds before a measurement, in which caches fill and the threads of whoever ran before go to sleep.
const WARM: f64 = 0.02;
/// Seconds of a measurement.
const TIMED: f64 = 0.03;

/// Seconds of one call, the mean over many.
pub fn sample(run: &mut dyn FnMut()) -> f64 {
    repeat(run, WARM);
    repeat(run, TIMED)
}

fn repeat(run: &mut dyn FnMut(), least: f64) -> f64 {
    let (start, mut calls) = (Instant::now(), 0);
    loop {
        run();
        calls += 1;
        let seconds = start.elapsed().as_secs_f64();
        if seconds >= least {
            return seconds / f64::from(calls);
        }
    }
}

/// The median of several measurements, with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (last, middle) = (sorted.len() - 1, sorted.len() / 2);
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Spread {
            median,
            least: sorted[0],
            most: sorted[last],
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(
            f,
            "{:.digits$} ({:.digits$}..{:.digits$})",
            self.median, self.least, self.most
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            spread,
            Spread {
                median: 2.5,
                least: 1.0,
                most: 4.0
            }
        );
        assert_eq!(format!("{spread:.1}"), "2.5 (1.0..4.0)");
        assert_eq!(Spread::of([7.0]).median, 7.0);
    }
}
