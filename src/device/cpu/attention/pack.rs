//! Rows of keys and values as tiles want them.
use super::element::{load, load_part};
use super::Element;
use crate::device::cpu::lanes::Lanes;

/// 16 rows of `d` elements, which begin at `at` after `from`, as columns: `[width][16]`.
#[inline(always)]
pub(super) unsafe fn transpose<L: Lanes, T: Element>(from: *const T, at: &[usize; 16], d: usize, to: *mut f32) {
    for c in (0..d).step_by(16) {
        let mut rows = [L::splat(0.0); 16];
        for (row, at) in rows.iter_mut().zip(at) {
            let from = from.add(at + c);
            *row = if c + 16 <= d {
                load(from)
            } else {
                load_part(from, d - c)
            };
        }
        for (i, column) in L::transpose(rows).into_iter().enumerate() {
            column.store(to.add((c + i) * 16));
        }
    }
}

/// `d` elements as f32, padded with zeros to a multiple of 16.
#[inline(always)]
pub(super) unsafe fn copy<L: Lanes, T: Element>(from: *const T, d: usize, to: *mut f32) {
    let whole = d / 16 * 16;
    for i in (0..whole).step_by(16) {
        load::<L, T>(from.add(i)).store(to.add(i));
    }
    if whole < d {
        load_part::<L, T>(from.add(whole), d - whole).store(to.add(whole));
    }
}
