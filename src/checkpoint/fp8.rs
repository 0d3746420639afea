//! FP8 weights with a scale for each block of 128 x 128 (DeepSeek-V3, section 3.3), as its checkpoint has them: a matrix
//! `x` of type F8_E4M3 beside the factors `x_scale_inv`, `[ceil(outputs / 128), ceil(inputs / 128)]` in float32.

/// Rows and columns of a block.
pub(super) const BLOCK: usize = 128;

/// The name of the factors of a matrix.
pub(super) fn scales_of(name: &str) -> String {
    format!("{name}_scale_inv")
}

/// How many factors a matrix of this shape has each way; nothing if it is no matrix.
pub(super) fn scales_shape(shape: &[usize]) -> Option<[usize; 2]> {
    match shape {
        [rows, columns] => Some([rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)]),
        _ => None,
    }
}

/// The values of a matrix with `columns` columns: products in float32, NaN where the bits say so.
pub(super) fn decode(bytes: &[u8], columns: usize, scales: &[f32]) -> Vec<f32> {
    let table: Vec<f32> = (0..=u8::MAX).map(value).collect();
    let mut values = Vec::with_capacity(bytes.len());
    if bytes.is_empty() {
        return values;
    }
    let of_row = columns.div_ceil(BLOCK);
    for (r, row) in bytes.chunks_exact(columns).enumerate() {
        let scales = &scales[r / BLOCK * of_row..][..of_row];
        for (block, scale) in row.chunks(BLOCK).zip(scales) {
            values.extend(block.iter().map(|&byte| table[byte as usize] * scale));
        }
    }
    values
}

/// E4M3 without infinities (Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1).
fn value(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * ((exponent - 7) as f32).exp2(),
    };
    if byte >> 7 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_those_of_the_format() {
        assert_eq!(value(0), 0.0);
        assert_eq!(value(0x80).to_bits(), (-0f32).to_bits());
        assert_eq!(value(0x01), 2f32.powi(-9));
        assert_eq!(value(0x07), 0.875 * 2f32.powi(-6));
        assert_eq!(value(0x08), 2f32.powi(-6));
        assert_eq!(value(0x38), 1.0);
        assert_eq!(value(0xb9), -1.125);
        assert_eq!(value(0x7e), 448.0);
        assert!(value(0x7f).is_nan() && value(0xff).is_nan());
        // From the smallest to the largest, each above the one before.
        assert!((1..0x7f).all(|byte| value(byte) > value(byte - 1)));
        assert!((0..0x7f).all(|byte| value(byte | 0x80) == -value(byte)));
    }

    #[test]
    fn each_block_has_its_own_scale() {
        for [rows, columns] in [[1, 1], [128, 128], [130, 300], [5, 129], [257, 127], [3, 0], [0, 4]] {
            let bytes: Vec<u8> = (0..rows * columns).map(|i| (i % 127) as u8).collect();
            let [down, across] = scales_shape(&[rows, columns]).unwrap();
            let scales: Vec<f32> = (0..down * across).map(|i| 0.1 + i as f32).collect();
            let values = decode(&bytes, columns, &scales);
            assert_eq!(values.len(), rows * columns);
            for r in 0..rows {
                for c in 0..columns {
                    let scale = scales[r / 128 * across + c / 128];
                    assert_eq!(values[r * columns + c], value(bytes[r * columns + c]) * scale);
                }
            }
        }
    }
}
