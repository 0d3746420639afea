//! Rows of keys and values written into a cache.
use half::bf16;
use sluicegate::device::Cpu;

#[test]
fn rows_are_stored_rounded_wherever_they_go() {
    // So much that it is worth several threads.
    let (width, stride) = (453, 500);
    let from: Vec<f32> = (0..200 * stride).map(|i| (i as f32).sin()).collect();
    // In an order of their own, with gaps; and the first row once more.
    let mut rows: Vec<u32> = (0..199).map(|i| i * 83 % 401).collect();
    rows.push(rows[0]);
    for threads in [1, 3] {
        let cpu = Cpu::new(threads).unwrap();
        let (mut single, mut half) = (vec![7.0f32; 401 * width], vec![bf16::ONE; 401 * width]);
        cpu.store_rows(&from, stride, width, &rows, &mut single);
        cpu.store_rows(&from, stride, width, &rows, &mut half);
        let (mut want, mut rounded) = (vec![7.0f32; 401 * width], vec![bf16::ONE; 401 * width]);
        for (i, row) in rows.iter().enumerate() {
            for j in 0..width {
                let x = from[i * stride + j];
                want[*row as usize * width + j] = x;
                rounded[*row as usize * width + j] = bf16::from_f32(x);
            }
        }
        assert!(single == want && half == rounded, "{threads} threads");
        cpu.store_rows(&[], stride, width, &[], &mut single);
        assert!(single == want);
    }
}

#[test]
#[should_panic(expected = "row 5 is beyond the end")]
fn rows_beyond_the_cache_are_refused() {
    Cpu::new(1)
        .unwrap()
        .store_rows(&[0.0; 4], 2, 2, &[1, 4], &mut [0.0f32; 8]);
}
