//! Frequencies of rotary positions (Su et al. 2021) and their extensions to longer texts.

use crate::device::Rotary;
use std::f64::consts::TAU;

/// Rotary positions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Elements of a head that are rotated, an even number.
    pub dim: usize,
    /// Base of the wavelengths.
    pub theta: f64,
    /// How frequencies were changed for longer texts.
    pub scaling: Scaling,
    /// Whether pairs are elements 2i and 2i + 1, not i and i + dim / 2.
    pub interleaved: bool,
}

/// How the frequencies of a model were changed for longer texts (`rope_scaling`).
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All are divided by a factor (position interpolation, Chen et al. 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low ones are divided by a factor, high ones are not (YaRN, Peng et al. 2023).
    Yarn(Yarn),
    /// Each is divided by a factor of its own (LongRoPE, Ding et al. 2024), in texts of so many tokens that longer ones would
    /// have other factors.
    Each {
        /// `[dim / 2]`
        factors: Vec<f64>,
        /// Factor on cosines and sines.
        magnitude: f64,
        /// Tokens that a text may have.
        positions: usize,
    },
}

/// YaRN under the names of `rope_scaling`.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer texts may be.
    pub factor: f64,
    /// Positions before that.
    pub original: usize,
    /// Rotations over those positions from which on a frequency is kept.
    pub beta_fast: f64,
    /// Rotations over those positions up to which a frequency is divided.
    pub beta_slow: f64,
    /// Whether the ends of the ramp between the two are rounded outwards to whole dimensions.
    pub truncate: bool,
    /// Factor on cosines and sines, where it is given.
    pub attention_factor: Option<f64>,
    /// DeepSeek's weights of the logarithm in that factor, 0 where there are none: above the line, and below it.
    pub mscale: [f64; 2],
}

impl Rope {
    /// Radians a position of each pair, `[dim / 2]`, with the roundings to float32 that the reference makes: a frequency one
    /// bit off turns a distant token's keys visibly.
    pub fn frequencies(&self) -> Vec<f32> {
        let wavelength = |i: usize| self.theta.powf(f64::from((2 * i) as f32 / self.dim as f32)) as f32;
        let pairs = (0..self.dim / 2).map(|i| (i, wavelength(i)));
        match &self.scaling {
            Scaling::None => pairs.map(|(_, w)| 1.0 / w).collect(),
            Scaling::Linear { factor } => pairs.map(|(_, w)| 1.0 / w / *factor as f32).collect(),
            Scaling::Yarn(yarn) => {
                let [low, high] = yarn.ramp(self.dim, self.theta);
                let mixed = |(i, w): (usize, f32)| {
                    let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    let kept = 1.0 - ramp;
                    1.0 / (yarn.factor as f32 * w) * (1.0 - kept) + 1.0 / w * kept
                };
                pairs.map(mixed).collect()
            }
            Scaling::Each { factors, .. } => pairs.map(|(i, w)| 1.0 / (factors[i] as f32 * w)).collect(),
        }
    }

    /// Factor on cosines and sines.
    pub fn magnitude(&self) -> f32 {
        match &self.scaling {
            Scaling::None | Scaling::Linear { .. } => 1.0,
            Scaling::Yarn(yarn) => yarn.magnitude() as f32,
            Scaling::Each { magnitude, .. } => *magnitude as f32,
        }
    }

    /// DeepSeek's factor on the scale of a softmax over scores.
    pub fn softmax_factor(&self) -> f32 {
        match &self.scaling {
            Scaling::Yarn(yarn) => logarithm(yarn.factor, yarn.mscale[1]).powi(2) as f32,
            _ => 1.0,
        }
    }

    /// The first position that has other frequencies, which are not computed.
    pub fn end(&self) -> Option<usize> {
        match &self.scaling {
            Scaling::Each { positions, .. } => Some(*positions),
            _ => None,
        }
    }

    /// What a device rotates by.
    pub fn rotary(&self) -> Rotary {
        Rotary::new(self.frequencies(), self.magnitude(), self.interleaved)
    }
}

impl Yarn {
    /// The pairs between which frequencies pass from kept to divided.
    fn ramp(&self, dim: usize, theta: f64) -> [f64; 2] {
        let pair = |rotations: f64| dim as f64 * (self.original as f64 / (rotations * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        [low, if low == high { high + 0.001 } else { high }]
    }

    fn magnitude(&self) -> f64 {
        let [above, below] = self.mscale;
        match self.attention_factor {
            Some(given) => given,
            None if above != 0.0 && below != 0.0 => logarithm(self.factor, above) / logarithm(self.factor, below),
            None => logarithm(self.factor, 1.0),
        }
    }
}

/// `0.1 weight ln(factor) + 1`, and 1 for texts that are no longer.
fn logarithm(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * weight * factor.ln() + 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Rope {
        Rope {
            dim: 16,
            theta: 150_000.0,
            scaling,
            interleaved: false,
        }
    }

    fn yarn() -> Yarn {
        Yarn {
            factor: 8.0,
            original: 32,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: None,
            mscale: [0.0; 2],
        }
    }

    fn close(found: &[f32], wanted: &[f32]) {
        assert_eq!(found.len(), wanted.len());
        for (f, w) in found.iter().zip(wanted) {
            assert!((f - w).abs() <= 2e-6 * w.abs(), "{found:?} {wanted:?}");
        }
    }

    #[test]
    fn plain_frequencies_fall_from_one_to_the_base() {
        let found = rope(Scaling::None).frequencies();
        close(&found[..1], &[1.0]);
        close(&found[4..5], &[150_000f32.powf(-0.5)]);
        let halved: Vec<f32> = found.iter().map(|f| f / 2.0).collect();
        close(&rope(Scaling::Linear { factor: 2.0 }).frequencies(), &halved);
        let each = Scaling::Each {
            factors: vec![2.0; 8],
            magnitude: 1.5,
            positions: 64,
        };
        close(&rope(each.clone()).frequencies(), &halved);
        assert_eq!(rope(each).magnitude(), 1.5);
    }

    /// Numbers of transformers 5.23.
    #[test]
    fn yarn_gives_the_references_numbers() {
        let untruncated = Yarn {
            truncate: false,
            ..yarn()
        };
        let low = [0.006351659, 0.0014317783, 0.00032274862];
        let found = rope(Scaling::Yarn(untruncated));
        close(&found.frequencies()[..5], &[1.0, 0.044905394, low[0], low[1], low[2]]);
        assert!((found.magnitude() - 1.207_944_2).abs() < 1e-6);
        let found = rope(Scaling::Yarn(yarn()));
        close(&found.frequencies()[..5], &[1.0, 0.12679763, low[0], low[1], low[2]]);
        let deepseek = Rope {
            theta: 10_000.0,
            ..rope(Scaling::Yarn(Yarn {
                factor: 40.0,
                original: 4096,
                mscale: [1.0, 0.5],
                ..yarn()
            }))
        };
        let wanted = [
            1.0,
            0.31622776,
            0.1,
            0.023914725,
            0.0051249997,
            0.0008498622,
            2.5e-5,
            7.905_694_5e-6,
        ];
        close(&deepseek.frequencies(), &wanted);
        assert!((deepseek.magnitude() - 1.155_722).abs() < 1e-6);
        assert!((deepseek.softmax_factor() - (0.05f32 * 40f32.ln() + 1.0).powi(2)).abs() < 1e-6);
    }

    /// Bits of transformers 5.23, of which a formula rounded at its end only has five others.
    #[test]
    fn frequencies_are_rounded_as_the_reference_rounds_them() {
        let rope = Rope {
            dim: 32,
            theta: 1e6,
            ..rope(Scaling::None)
        };
        let wanted: [u32; 16] = [
            0x3f800000, 0x3ed7e89b, 0x3e361887, 0x3d99940d, 0x3d0186e3, 0x3c5a7bf2, 0x3bb8449c, 0x3b1b690d, 0x3a83126f,
            0x39dd1725, 0x393a7753, 0x389d43a4, 0x3804a2b2, 0x375fba4f, 0x36bcb0c1, 0x361f23e4,
        ];
        let found: Vec<u32> = rope.frequencies().iter().map(|f| f.to_bits()).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_given_factor_and_a_ramp_without_width_are_taken_as_they_are() {
        let given = Yarn {
            attention_factor: Some(0.75),
            ..yarn()
        };
        assert_eq!(rope(Scaling::Yarn(given)).magnitude(), 0.75);
        let flat = Yarn { original: 1, ..yarn() };
        assert!(rope(Scaling::Yarn(flat)).frequencies().iter().all(|f| f.is_finite()));
        assert_eq!(rope(Scaling::Yarn(yarn())).softmax_factor(), 1.0);
        let shorter = Yarn { factor: 0.5, ..yarn() };
        assert_eq!(rope(Scaling::Yarn(shorter)).magnitude(), 1.0);
    }
}
