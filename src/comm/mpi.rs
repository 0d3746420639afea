//! Ranks over MPI. The only place that calls it; everything from the main thread (`MPI_THREAD_FUNNELED`), but for the
//! `MPI_Abort` of a thread that panics, after which there is nothing left to go wrong.

use super::{Comm, Part};
use ::mpi::ffi;
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::raw::{c_int, c_void};
use std::rc::Rc;
use std::time::{Duration, Instant};

const ROWS: c_int = 12;
const MESSAGE: c_int = 13;
/// Rows in one message: counts are `i32` in MPI; longer ones are split.
const MOST_ROWS: usize = 1 << 30;
/// How long a wait keeps its core, so that what comes at once is seen at once.
const SPINNING: Duration = Duration::from_micros(20);
/// How long it then lets others go first before it sleeps.
const YIELDING: Duration = Duration::from_micros(200);
/// What a waiting rank sleeps at a time (the system's timers add about as much).
const NAP: Duration = Duration::from_micros(50);
/// How long a rank that has failed waits for the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// MPI while it is initialised: finalised when this is dropped.
pub struct World {
    // Dropped last: MPI is finalised.
    comm: MpiComm,
    /// Where ranks meet before they leave.
    door: ffi::MPI_Comm,
    _universe: ::mpi::environment::Universe,
}

impl World {
    /// Initialises MPI and makes a panic on any rank end the whole job with exit code 2: an unwinding rank would
    /// reach `MPI_Finalize` and wait there for the others for ever.
    ///
    /// # Errors
    /// When MPI is initialised already or cannot be.
    pub fn start() -> anyhow::Result<World> {
        let (universe, _) = ::mpi::initialize_with_threading(::mpi::Threading::Funneled)
            .ok_or_else(|| anyhow::anyhow!("MPI could not be initialised; `sluice doctor` shows what was found"))?;
        // SAFETY: MPI is initialised; the handle is a constant of the library.
        let (comm, door) = unsafe {
            let mut door = std::mem::zeroed();
            ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut door);
            (MpiComm::of(ffi::RSMPI_COMM_WORLD, Rc::default()), door)
        };
        let (rank, hook) = (comm.rank, std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            eprintln!("sluice: error: rank {rank} panicked; the whole job ends");
            abort(2);
        }));
        Ok(World {
            comm,
            door,
            _universe: universe,
        })
    }

    /// Leaves MPI together with the others. Those who have `failed` wait for them only for two seconds: a rank that sits
    /// in a collective, waiting for this one, would never come, and so the whole job is ended with code 2.
    pub fn leave(self, failed: bool) {
        let since = Instant::now();
        // SAFETY: a collective without buffers on a communicator of its own; the request is tested until it is done.
        unsafe {
            let mut request: ffi::MPI_Request = std::mem::zeroed();
            ffi::MPI_Ibarrier(self.door, &mut request);
            loop {
                let mut done: c_int = 0;
                ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE);
                if done != 0 {
                    return;
                }
                if failed && since.elapsed() > PATIENCE {
                    abort(2);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// All ranks of the job.
    pub fn comm(&self) -> &dyn Comm {
        &self.comm
    }
}

/// Ends every rank of the job with `code`. Without MPI, ends the process.
pub fn abort(code: i32) -> ! {
    // SAFETY: MPI_Initialized and MPI_Finalized may be called at any time; MPI_Abort only between the two.
    unsafe {
        let (mut on, mut off): (c_int, c_int) = (0, 0);
        ffi::MPI_Initialized(&mut on);
        ffi::MPI_Finalized(&mut off);
        if on != 0 && off == 0 {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        }
    }
    std::process::exit(code)
}

/// The MPI library's own name and version, one line.
pub fn library() -> String {
    let text = ::mpi::environment::library_version().unwrap_or_else(|_| "unknown MPI library".into());
    text.trim_end_matches('\0')
        .lines()
        .next()
        .unwrap_or_default()
        .split(", ")
        .next()
        .unwrap_or_default()
        .to_string()
}

/// Datatypes of a row's bytes, so that counts count rows; kept for the whole job.
type RowTypes = Rc<RefCell<HashMap<usize, ffi::MPI_Datatype>>>;

struct MpiComm {
    comm: ffi::MPI_Comm,
    rank: usize,
    size: usize,
    types: RowTypes,
    /// Messages that MPI may still be reading.
    posted: RefCell<Vec<(ffi::MPI_Request, Box<[u8]>)>>,
}

impl MpiComm {
    /// # Safety
    /// `comm` must be a live communicator.
    unsafe fn of(comm: ffi::MPI_Comm, types: RowTypes) -> MpiComm {
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        ffi::MPI_Comm_rank(comm, &mut rank);
        ffi::MPI_Comm_size(comm, &mut size);
        MpiComm {
            comm,
            rank: rank as usize,
            size: size as usize,
            types,
            posted: RefCell::default(),
        }
    }

    fn row_type(&self, bytes: usize) -> ffi::MPI_Datatype {
        *self.types.borrow_mut().entry(bytes).or_insert_with(|| {
            // SAFETY: a contiguous run of bytes, committed before its first use, never freed.
            unsafe {
                let mut made = std::mem::zeroed();
                ffi::MPI_Type_contiguous(bytes as c_int, ffi::RSMPI_UINT8_T, &mut made);
                ffi::MPI_Type_commit(&mut made);
                made
            }
        })
    }

    fn wait(&self, requests: &mut [ffi::MPI_Request]) {
        let (since, n) = (Instant::now(), requests.len() as c_int);
        loop {
            let mut done: c_int = 0;
            // SAFETY: the requests were started by this module and their buffers outlive this call.
            unsafe { ffi::MPI_Testall(n, requests.as_mut_ptr(), &mut done, ffi::RSMPI_STATUSES_IGNORE) };
            if done != 0 {
                return;
            }
            give_way(since.elapsed());
        }
    }
}

/// Lets others have the core, the more the longer this rank has `waited`: where there are more ranks than cores, the one
/// that is waited for may need this very core.
fn give_way(waited: Duration) {
    if waited > YIELDING {
        std::thread::sleep(NAP);
    } else if waited > SPINNING {
        std::thread::yield_now();
    }
}

/// The runs of at most [`MOST_ROWS`] rows that `rows` rows from row `at` on are sent in: (first row, rows).
fn runs(at: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows.div_ceil(MOST_ROWS)).map(move |i| (at + i * MOST_ROWS, MOST_ROWS.min(rows - i * MOST_ROWS)))
}

impl Comm for MpiComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, mine: &[u8], all: &mut Vec<u8>) {
        all.clear();
        all.resize(mine.len() * self.size, 0);
        let n = c_int::try_from(mine.len()).expect("a block below 2 GiB");
        // SAFETY: both buffers hold what the counts say (n bytes, and n for each rank), borrowed until the request has
        // completed below.
        unsafe {
            let (byte, mut request) = (ffi::RSMPI_UINT8_T, std::mem::zeroed());
            let (from, to) = (mine.as_ptr() as *const c_void, all.as_mut_ptr() as *mut c_void);
            ffi::MPI_Iallgather(from, n, byte, to, n, byte, self.comm, &mut request);
            self.wait(&mut [request]);
        }
    }

    fn broadcast(&self, root: usize, data: &mut Vec<u8>) {
        let mut bytes = data.len() as u64;
        // SAFETY: one u64 on every rank, then pieces that lie inside `data`, which has that length everywhere.
        unsafe {
            ffi::MPI_Bcast(
                &mut bytes as *mut u64 as *mut c_void,
                1,
                ffi::RSMPI_UINT64_T,
                root as c_int,
                self.comm,
            );
            data.resize(bytes as usize, 0);
            for piece in data.chunks_mut(MOST_ROWS) {
                let (at, n) = (piece.as_mut_ptr() as *mut c_void, piece.len() as c_int);
                ffi::MPI_Bcast(at, n, ffi::RSMPI_UINT8_T, root as c_int, self.comm);
            }
        }
    }

    fn barrier(&self) {
        // SAFETY: a collective without buffers.
        unsafe { ffi::MPI_Barrier(self.comm) };
    }

    fn all_to_all(&self, send: &[u32], recv: &mut [u32], meanwhile: &mut dyn FnMut()) {
        assert!(
            send.len() == recv.len() && send.len().is_multiple_of(self.size),
            "as many numbers for each rank"
        );
        let n = (send.len() / self.size) as c_int;
        // SAFETY: `n` u32 a rank in both buffers, borrowed until the request has completed below.
        unsafe {
            let mut request = std::mem::zeroed();
            let (from, to) = (send.as_ptr() as *const c_void, recv.as_mut_ptr() as *mut c_void);
            ffi::MPI_Ialltoall(
                from,
                n,
                ffi::RSMPI_UINT32_T,
                to,
                n,
                ffi::RSMPI_UINT32_T,
                self.comm,
                &mut request,
            );
            meanwhile();
            self.wait(&mut [request]);
        }
    }

    fn exchange(&self, parts: &mut [Part<'_>]) {
        let mut requests: Vec<ffi::MPI_Request> = Vec::new();
        for (p, part) in parts.iter_mut().enumerate() {
            part.check(self.size, self.rank);
            let (row, bytes, tag) = (self.row_type(part.row_bytes), part.row_bytes, ROWS + 100 * p as c_int);
            let (mut in_at, mut out_at) = (0, 0);
            for r in 0..self.size {
                let (inward, outward) = (part.recv_rows[r] as usize, part.send_rows[r] as usize);
                // SAFETY: `check` has shown that the runs lie inside the buffers; both stay borrowed by `parts` until
                // every request has completed below.
                unsafe {
                    for (at, n) in runs(in_at, inward) {
                        let to = part.recv.as_mut_ptr().add(at * bytes) as *mut c_void;
                        requests.push(std::mem::zeroed());
                        let request = requests.last_mut().expect("just pushed");
                        ffi::MPI_Irecv(to, n as c_int, row, r as c_int, tag, self.comm, request);
                    }
                    for (at, n) in runs(out_at, outward) {
                        let from = part.send.as_ptr().add(at * bytes) as *const c_void;
                        requests.push(std::mem::zeroed());
                        let request = requests.last_mut().expect("just pushed");
                        ffi::MPI_Isend(from, n as c_int, row, r as c_int, tag, self.comm, request);
                    }
                }
                in_at += inward;
                out_at += outward;
            }
        }
        super::crash::crash_point("exchange");
        self.wait(&mut requests);
    }

    fn send(&self, to: usize, data: &[u8]) {
        let copy: Box<[u8]> = data.into();
        let mut posted = self.posted.borrow_mut();
        // SAFETY: a boxed copy does not move and is dropped only once MPI has reported its request complete.
        unsafe {
            posted.retain_mut(|(request, _)| {
                let mut done: c_int = 0;
                ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE);
                done == 0
            });
            let mut request: ffi::MPI_Request = std::mem::zeroed();
            let (at, n) = (copy.as_ptr() as *const c_void, copy.len() as c_int);
            ffi::MPI_Isend(at, n, ffi::RSMPI_UINT8_T, to as c_int, MESSAGE, self.comm, &mut request);
            posted.push((request, copy));
        }
    }

    fn try_receive(&self) -> Option<(usize, Vec<u8>)> {
        // SAFETY: the status is written before it is read; the buffer has the probed length.
        unsafe {
            let (mut there, mut n): (c_int, c_int) = (0, 0);
            let mut status: ffi::MPI_Status = std::mem::zeroed();
            ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, MESSAGE, self.comm, &mut there, &mut status);
            if there == 0 {
                return None;
            }
            ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut n);
            let mut data = vec![0u8; n as usize];
            let (at, from) = (data.as_mut_ptr() as *mut c_void, status.MPI_SOURCE);
            ffi::MPI_Recv(
                at,
                n,
                ffi::RSMPI_UINT8_T,
                from,
                MESSAGE,
                self.comm,
                ffi::RSMPI_STATUS_IGNORE,
            );
            Some((from as usize, data))
        }
    }

    fn split(&self, color: usize) -> Box<dyn Comm> {
        // SAFETY: a collective that makes a new communicator, which lives as long as the job.
        unsafe {
            let mut made = std::mem::zeroed();
            ffi::MPI_Comm_split(self.comm, color as c_int, self.rank as c_int, &mut made);
            Box::new(MpiComm::of(made, self.types.clone()))
        }
    }
}
