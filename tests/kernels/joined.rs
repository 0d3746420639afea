//! Heads put together from parts.
use crate::values;
use sluicegate::device::Cpu;

#[test]
fn parts_of_heads_come_to_their_rows_at_any_thread_count() {
    for threads in [1, 3] {
        let cpu = Cpu::new(threads).unwrap();
        for (rows, heads, [first, second]) in [
            (1, 1, [1, 1]),
            (7, 3, [5, 2]),
            (300, 16, [64, 8]),
            (5, 2, [3, 0]),
            (4, 2, [0, 3]),
            (0, 2, [3, 1]),
        ] {
            let by_head = values(heads * rows * first, 50);
            let by_row = values(rows * heads * second, 51);
            let mut wanted: Vec<f32> = Vec::new();
            for row in 0..rows {
                for head in 0..heads {
                    wanted.extend(&by_head[(head * rows + row) * first..][..first]);
                    wanted.extend(&by_row[(row * heads + head) * second..][..second]);
                }
            }
            let mut joined = vec![9.0; wanted.len()];
            cpu.join_heads(&by_head, &by_row, heads, [first, second], &mut joined);
            assert_eq!(joined, wanted, "{rows} rows, {heads} heads, {first} and {second}");
        }
    }
}
