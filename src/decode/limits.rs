//! How much a rank takes on at once. Pure: numbers in, numbers out.

use super::lockstep::{ENCODE_TOKENS, PART};
use super::search::Settings;

/// Fewest source tokens that a sentence counts for: bounds the number of sentences in flight.
pub const LEAST_TOKENS: usize = 16;

/// Rows that an expert should see in a decoding step: from about there on its products take longer than its weights take
/// from memory.
const ROWS_AN_EXPERT: usize = 32;
/// Rows of a rank in a decoding step, for the dense layers' sake, and the most that are worth their caches.
const ROWS_A_RANK: [usize; 2] = [128, 1024];

/// What `--batch-tokens auto` is chosen from.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Ranks that share the experts.
    pub ranks: usize,
    /// Outputs of each sentence.
    pub outputs: usize,
    /// About how many tokens a sentence has.
    pub mean_tokens: usize,
}

impl Demand {
    /// Limits with which each expert sees `ROWS_AN_EXPERT` rows a decoding step on average, within `ROWS_A_RANK` and
    /// one sentence at least. Twice the mean in tokens, so that longer sentences still fill the slots.
    pub fn limits(&self, beams: usize) -> Limits {
        let rows = (ROWS_AN_EXPERT * self.experts).div_ceil(self.top_k.max(1) * self.ranks);
        let (per_sentence, [least, most]) = (self.outputs.max(1), ROWS_A_RANK);
        let sentences = (rows.clamp(least, most) / (beams * per_sentence)).max(1);
        Limits {
            tokens: 2 * sentences * self.mean_tokens.max(LEAST_TOKENS),
            outputs: sentences * per_sentence,
            ..Limits::of(0, per_sentence)
        }
    }
}

/// How much a rank takes on at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Source tokens in flight (`--batch-tokens`).
    pub tokens: usize,
    /// Outputs in flight.
    pub outputs: usize,
    /// Outputs of each sentence.
    pub per_sentence: usize,
    /// Source tokens that are read in one go.
    pub portion: usize,
    /// Reading is put off until one part in so many of the room waits.
    pub part: usize,
    /// Tokens of the longest source that there is room for, alone.
    pub longest: usize,
}

/// Bytes that tokens take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Of a cache row, over all layers.
    pub row: u64,
    /// What a token is turned into on its way through a layer.
    pub activations: u64,
    /// The same of a source's token, where a source is read whole however long it is: with an encoder. Else 0.
    pub whole: u64,
}

impl Limits {
    /// Limits for a token budget, with at least one sentence of `outputs` outputs.
    pub fn of(tokens: usize, outputs: usize) -> Limits {
        let per_sentence = outputs.max(1);
        let outputs = (tokens / LEAST_TOKENS).max(1) * per_sentence;
        Limits {
            tokens,
            outputs,
            per_sentence,
            portion: ENCODE_TOKENS,
            part: PART,
            longest: usize::MAX,
        }
    }

    /// The same limits with as many fewer outputs in flight as it takes for all caches to fit into `room` bytes, were
    /// every output to reach its full length, and what the outputs are turned into in a step; and the longest source that
    /// fits in their place. Changes the speed, never a result.
    ///
    /// # Errors
    /// When not even one sentence fits: the bytes that it needs.
    pub fn fit(self, room: u64, settings: &Settings, costs: Costs) -> Result<Limits, u64> {
        let bytes = |outputs| Limits { outputs, ..self }.bytes(settings, costs);
        let most = (1..=self.outputs / self.per_sentence)
            .rev()
            .map(|n| n * self.per_sentence);
        let fitting = most.into_iter().find(|&outputs| bytes(outputs) <= room);
        fitting
            .map(|outputs| Limits {
                outputs,
                longest: self.longest_in(room, settings, costs),
                ..self
            })
            .ok_or(bytes(self.per_sentence))
    }

    /// The same limits for fewer sentences, source tokens and outputs alike, so that all fits into `room` bytes; one
    /// sentence is left in any case.
    pub fn scaled(self, room: u64, settings: &Settings, costs: Costs) -> Limits {
        let sentences = self.outputs / self.per_sentence;
        let of = |n: usize| Limits {
            tokens: (self.tokens / sentences * n).max(1),
            outputs: n * self.per_sentence,
            ..self
        };
        let fits = |limits: &Limits| limits.bytes(settings, costs) <= room;
        (1..=sentences).rev().map(of).find(fits).unwrap_or(of(1))
    }

    /// The same limits with no more source tokens than fit into `room` bytes beside the outputs of one sentence: a mean
    /// that few long sources make is no reason to refuse all others.
    pub fn within(self, room: u64, settings: &Settings, costs: Costs) -> Limits {
        let most = self.longest_in(room, settings, costs).max(1);
        Limits {
            tokens: self.tokens.min(most),
            ..self
        }
    }

    /// Tokens of the longest source that fits into `room` bytes with its outputs and nothing else.
    fn longest_in(&self, room: u64, settings: &Settings, costs: Costs) -> usize {
        let alone = self.alone(0).bytes(settings, costs);
        let tokens = room.saturating_sub(alone) / (costs.row + costs.whole).max(1);
        usize::try_from(tokens).unwrap_or(usize::MAX)
    }

    /// The limits with which a single source of `tokens` tokens is in flight.
    pub fn alone(self, tokens: usize) -> Limits {
        Limits {
            tokens,
            outputs: self.per_sentence,
            ..self
        }
    }

    /// The most bytes the caches can come to hold: generated tokens of all outputs at full length, and source tokens.
    pub fn cache_bytes(&self, settings: &Settings, row_bytes: u64) -> u64 {
        let own = (self.outputs as u64).saturating_mul(settings.slot_rows() as u64);
        let rows = own.saturating_add(self.tokens as u64);
        rows.saturating_mul(row_bytes)
    }

    /// The most bytes that decoding can come to hold: caches, and activations of all outputs' hypotheses.
    fn bytes(&self, settings: &Settings, costs: Costs) -> u64 {
        let rows = (self.outputs as u64).saturating_mul(settings.beams as u64);
        let activations = rows.saturating_mul(costs.activations);
        self.cache_bytes(settings, costs.row).saturating_add(activations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_cut_to_the_room_there_is() {
        let settings = Settings::plain(2, 11);
        let limits = Limits::of(64, 3);
        // 12 outputs of 10 positions and 2 beams, 64 source tokens; 3 layers of 2 * 4 floats: 96 bytes a row.
        assert_eq!(limits.cache_bytes(&settings, 96), (12 * 20 + 64) * 96);
        let costs = Costs {
            row: 96,
            activations: 1000,
            whole: 0,
        };
        let fit = |room| limits.fit(room, &settings, costs);
        // What an output takes: its rows of the caches, and its two rows of a step.
        let output = 20 * 96 + 2000;
        let cut = |outputs, longest| {
            Ok(Limits {
                outputs,
                longest,
                ..limits
            })
        };
        assert_eq!(
            fit(12 * output + 64 * 96),
            cut(12, (9 * output + 64 * 96) as usize / 96)
        );
        let six = 6 * output + 64 * 96;
        let longest = (3 * output + 64 * 96) as usize / 96;
        assert_eq!(fit(six), cut(6, longest), "whole sentences only");
        let alone = limits.alone(longest);
        assert!(alone.bytes(&settings, costs) <= six && limits.alone(longest + 1).bytes(&settings, costs) > six);
        assert_eq!(fit(9 * output + 64 * 96 - 1).map(|l| l.outputs), Ok(6));
        let little = 3 * output + 10 * 96;
        let within = limits.alone(64).within(little, &settings, costs);
        assert_eq!(
            (within.tokens, within.fit(little, &settings, costs).is_ok()),
            (10, true)
        );
        assert_eq!(limits.within(six, &settings, costs), limits);
        assert_eq!(limits.within(0, &settings, costs).tokens, 1);
        let encoded = limits.fit(six, &settings, Costs { whole: 1000, ..costs });
        assert_eq!(encoded.map(|l| l.longest), Ok((3 * output + 64 * 96) as usize / 1096));
        assert_eq!(fit(99), Err(3 * output + 64 * 96));
        assert_eq!(Limits::of(1, 1).outputs, 1);
        let scaled = |room| {
            let rows_only = Costs {
                activations: 0,
                ..costs
            };
            limits.scaled(room, &settings, rows_only)
        };
        assert_eq!(scaled(1 << 30), limits);
        let half = Limits {
            tokens: 32,
            outputs: 6,
            ..limits
        };
        assert_eq!(scaled((6 * 20 + 32) * 96), half);
        assert_eq!(scaled((9 * 20 + 48) * 96 - 1), half);
        assert_eq!(
            (scaled(0).tokens, scaled(0).outputs),
            (16, 3),
            "one sentence in any case"
        );
    }

    #[test]
    fn experts_are_kept_busy_on_any_number_of_ranks() {
        let demand = |experts, ranks, outputs| Demand {
            experts,
            top_k: 2,
            ranks,
            outputs,
            mean_tokens: 30,
        };
        let limits = demand(32, 1, 1).limits(1);
        assert_eq!((limits.outputs, limits.tokens, limits.per_sentence), (512, 30720, 1));
        assert_eq!(demand(32, 2, 1).limits(1).outputs, 256);
        assert_eq!(demand(128, 16, 1).limits(1).outputs, 128);
        assert_eq!(
            demand(128, 1, 1).limits(1).outputs,
            1024,
            "no more than are worth their caches"
        );
        assert_eq!(demand(8, 4, 1).limits(1).outputs, 128, "enough for the dense layers");
        assert_eq!(
            demand(32, 1, 3).limits(5).outputs,
            34 * 3,
            "rows are outputs times beams"
        );
        assert_eq!(demand(2, 8, 1).limits(1000).outputs, 1, "one sentence at least");
        assert_eq!(demand(2, 8, 200).limits(4).outputs, 200);
    }
}
