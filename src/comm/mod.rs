//! Ranks: how the processes of a job talk, behind one trait.
//!
//! [`mpi`] is the real thing, [`threads`] runs the same code on threads of one process (tests), and a job started
//! without a launcher is simply an MPI world of size one. Nothing here knows what the bytes mean.

pub mod affinity;
pub mod crash;
pub mod launch;
pub mod mpi;
pub mod signal;
pub mod threads;

/// Rows for every rank in one go: what [`Comm::exchange`] moves.
///
/// `send` holds the rows for rank 0, then those for rank 1, and so on; `recv` is filled in the same order. The
/// rows a rank keeps for itself are never sent: its own counts must be 0.
pub struct Part<'a> {
    /// Rows to send, rank-major: `[sum(send_rows), row_bytes]`.
    pub send: &'a [u8],
    /// Rows for each rank, `[ranks]`.
    pub send_rows: &'a [u32],
    /// Where arriving rows go, rank-major: `[sum(recv_rows), row_bytes]`.
    pub recv: &'a mut [u8],
    /// Rows from each rank, `[ranks]`.
    pub recv_rows: &'a [u32],
    /// Bytes of one row.
    pub row_bytes: usize,
}

impl Part<'_> {
    /// Panics when counts and buffers disagree: sending past a buffer would be worse.
    fn check(&self, ranks: usize, rank: usize) {
        let sum = |counts: &[u32]| counts.iter().map(|&c| c as usize).sum::<usize>() * self.row_bytes;
        assert!(
            self.send_rows.len() == ranks && self.recv_rows.len() == ranks,
            "one count for each rank"
        );
        assert!(
            self.send_rows[rank] == 0 && self.recv_rows[rank] == 0,
            "own rows are not exchanged"
        );
        assert_eq!(sum(self.send_rows), self.send.len(), "bytes to send");
        assert_eq!(sum(self.recv_rows), self.recv.len(), "bytes to receive");
    }
}

/// A group of ranks in lockstep.
///
/// Every call but [`send`](Comm::send) and [`try_receive`](Comm::try_receive) is collective: all ranks of the group
/// make it, in the same order, from their main thread. Transport errors end the job (MPI's own error handler), so
/// nothing here returns one.
pub trait Comm {
    /// This rank, `0..size`.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// Every rank's block of equal length, in rank order, into `all` (`[ranks, mine.len()]`).
    fn all_gather(&self, mine: &[u8], all: &mut Vec<u8>);
    /// `data` of rank `root` on every rank, whatever length they had.
    fn broadcast(&self, root: usize, data: &mut Vec<u8>);
    /// Returns once every rank has come here.
    fn barrier(&self);
    /// As many numbers for every rank: of `send` `[ranks, n]` row `r` goes to rank `r`, row `r` of `recv` came from it.
    /// `meanwhile` runs while they are under way.
    fn all_to_all(&self, send: &[u32], recv: &mut [u32], meanwhile: &mut dyn FnMut());
    /// Moves exactly the rows each part lists.
    fn exchange(&self, parts: &mut [Part<'_>]);
    /// A small message to one rank; returns at once.
    fn send(&self, to: usize, data: &[u8]);
    /// A message that has arrived, with its sender, or nothing.
    fn try_receive(&self) -> Option<(usize, Vec<u8>)>;
    /// The ranks that gave the same `color`, as a group of their own, in rank order.
    fn split(&self, color: usize) -> Box<dyn Comm>;
}

/// Every rank's text, in rank order (collective).
pub fn gather_texts(comm: &dyn Comm, mine: &str) -> Vec<String> {
    let mut lengths = Vec::new();
    comm.all_gather(&(mine.len() as u64).to_le_bytes(), &mut lengths);
    let lengths: Vec<usize> = lengths.chunks_exact(8).map(|b| u64_at(b) as usize).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return vec![String::new(); comm.size()];
    }
    let mut block = mine.as_bytes().to_vec();
    block.resize(longest, 0);
    let mut all = Vec::new();
    comm.all_gather(&block, &mut all);
    let text = |(r, &n): (usize, &usize)| String::from_utf8_lossy(&all[r * longest..r * longest + n]).into_owned();
    lengths.iter().enumerate().map(text).collect()
}

/// An error that another rank has reported already: this rank ends quietly.
#[derive(Debug)]
pub struct ReportedElsewhere;

impl std::fmt::Display for ReportedElsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another rank has failed and said why")
    }
}

impl std::error::Error for ReportedElsewhere {}

/// How a rank stands when all [`agree`].
const FINE: u8 = 0;
const TOLD: u8 = 1;
const FAILED: u8 = 2;

/// Makes one rank's failure everybody's (collective): the lowest rank with an error of its own keeps it and so prints it
/// once, the others get [`ReportedElsewhere`].
pub fn agree<T>(comm: &dyn Comm, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let state = match &result {
        Ok(_) => FINE,
        Err(error) if error.is::<ReportedElsewhere>() => TOLD,
        Err(_) => FAILED,
    };
    let mut states = Vec::new();
    comm.all_gather(&[state], &mut states);
    let speaker = states.iter().position(|&s| s == FAILED);
    if states.iter().all(|&s| s == FINE) || speaker == Some(comm.rank()) {
        result
    } else {
        Err(ReportedElsewhere.into())
    }
}

/// The little-endian `u64` that `bytes` starts with.
pub(crate) fn u64_at(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}
