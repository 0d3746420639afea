//! From tokens to the residual stream.

use crate::device::Linear;
use crate::model::blocks::Sinusoids;

/// The position of a sentence's first token in fairseq's numbering: padding index + 1.
const FIRST_POSITION: usize = 2;

/// Embedding of tokens, perhaps with their positions.
pub(super) struct Embedding {
    /// `[vocabulary, d_model]`: output projection too.
    pub table: Linear,
    /// Factor on the table's rows.
    pub scale: f32,
    /// What is added by position, and the padding token, which has none.
    pub positions: Option<(Sinusoids, u32)>,
}

impl Embedding {
    /// Writes each (token, position in its sentence) into a row of `x` `[tokens, d_model]`.
    pub fn write(&mut self, tokens: impl Iterator<Item = (u32, usize)>, x: &mut [f32]) {
        for ((id, position), row) in tokens.zip(x.chunks_exact_mut(self.table.inputs())) {
            self.table.embedding(id as usize, row);
            row.iter_mut().for_each(|x| *x *= self.scale);
            if let Some((sinusoids, pad)) = &mut self.positions {
                if id != *pad {
                    let sinusoid = sinusoids.row(position + FIRST_POSITION);
                    row.iter_mut().zip(sinusoid).for_each(|(x, p)| *x += p);
                }
            }
        }
    }

    /// The token that takes no position.
    pub fn pad(&self) -> Option<u32> {
        self.positions.as_ref().map(|(_, pad)| *pad)
    }
}

/// A sentence's tokens with their positions: a padding token typed in the text takes none, as in the reference.
pub(super) fn positions(ids: &[u32], pad: Option<u32>) -> impl Iterator<Item = (u32, usize)> + '_ {
    ids.iter().scan(0, move |next, &id| {
        Some((id, std::mem::replace(next, *next + (Some(id) != pad) as usize)))
    })
}
