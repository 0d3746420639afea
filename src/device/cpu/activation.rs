//! What a gated feed-forward layer makes of its gates.
use super::exp::exp_lanes;
use super::lanes::Lanes;

/// How a gate g opens for its up projection u, with `sigmoid(x) = 1 / (1 + exp(-x))`: in float32 as written here, every
/// operation rounded once, [`exp`](super::exp) the house's own, so that all instruction sets give the same bits.
///
/// A NaN in either gives NaN. So does a gate of `-inf`, as `-inf / inf` (not so [`Activation::ClampedSwish`] with alpha 0);
/// one below about -89 gives -0 times u. As the formulas have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `g / (1 + exp(-g)) * u`
    Silu,
    /// `(u + 1) * (g / (1 + exp(-alpha g)))` after `g = min(g, limit)` and `u = clamp(u, -limit, limit)` (`gpt_oss`).
    ClampedSwish {
        /// What gates are multiplied with in the sigmoid.
        alpha: f32,
        /// Where gates and up projections are cut; positive.
        limit: f32,
    },
}

impl Activation {
    #[inline(always)]
    pub(super) unsafe fn apply<L: Lanes>(self, g: L, u: L) -> L {
        let one = L::splat(1.0);
        match self {
            Activation::Silu => g.div(one.add(exp_lanes(L::splat(-1.0).mul(g)))).mul(u),
            Activation::ClampedSwish { alpha, limit } => {
                // The limits first: min and max then keep a NaN.
                let g = L::splat(limit).min(g);
                let u = L::splat(limit).min(L::splat(-limit).max(u));
                let swish = g.div(one.add(exp_lanes(L::splat(-alpha).mul(g))));
                u.add(one).mul(swish)
            }
        }
    }
}
