//! The libraries beside which our products are timed, behind one call.
use std::ffi::c_int;

use anyhow::{Context, Result};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use gemm::Parallelism;
use libloading::Library as Shared;

/// How a library's weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[outputs, inputs]`, as checkpoints have them.
    OutputMajor,
    /// `[inputs, outputs]`.
    InputMajor,
}

/// `out = x W`: `x` is `[rows, inputs]`, `out` `[rows, outputs]`, both row-major.
pub struct Call<'a> {
    pub inputs: usize,
    pub outputs: usize,
    pub x: &'a [f32],
    pub weights: &'a [f32],
    pub layout: Layout,
    pub out: &'a mut [f32],
}

impl Call<'_> {
    fn rows(&self) -> usize {
        self.x.len() / self.inputs
    }

    /// Strides of the weights seen as `[inputs, outputs]`: from input to input, from output to output.
    fn strides(&self) -> (isize, isize) {
        match self.layout {
            Layout::OutputMajor => (1, self.inputs as isize),
            Layout::InputMajor => (self.outputs as isize, 1),
        }
    }
}

type Sgemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    f32,
    *const f32,
    c_int,
    *const f32,
    c_int,
    f32,
    *mut f32,
    c_int,
);

/// A library of float32 matrix products.
pub enum Library {
    /// Crate `gemm`.
    Gemm,
    /// Crate `faer`.
    Faer,
    /// OpenBLAS, found at run time.
    OpenBlas(OpenBlas),
}

/// OpenBLAS, as loaded; `_library` keeps it loaded.
pub struct OpenBlas {
    sgemm: Sgemm,
    set_threads: unsafe extern "C" fn(c_int),
    _library: Shared,
}

impl OpenBlas {
    /// Loads it.
    ///
    /// # Errors
    /// If it is not installed, or lacks the two functions needed here.
    pub fn load() -> Result<OpenBlas> {
        // SAFETY: a library for any program's use; its initialisation does nothing but choose kernels.
        let library = unsafe { Shared::new("libopenblas.so.0") }.context(
            "OpenBLAS is left out: libopenblas.so.0 was not found; install it with: apt-get install libopenblas0",
        )?;
        let missing = "OpenBLAS is left out: libopenblas.so.0 is not what Debian's libopenblas0 installs";
        // SAFETY: both have these signatures in every version with 32-bit integers, which Debian's is.
        let (sgemm, set_threads) = unsafe {
            (
                *library.get::<Sgemm>(b"cblas_sgemm").context(missing)?,
                *library.get(b"openblas_set_num_threads").context(missing)?,
            )
        };
        Ok(OpenBlas {
            sgemm,
            set_threads,
            _library: library,
        })
    }
}

impl Library {
    /// What the table calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Library::Gemm => "gemm",
            Library::Faer => "faer",
            Library::OpenBlas(_) => "OpenBLAS",
        }
    }

    /// Whether several threads may call it at once, each for a product of its own.
    pub fn is_called_by_threads(&self) -> bool {
        !matches!(self, Library::OpenBlas(_))
    }

    /// Computes `call` on `threads` threads.
    pub fn multiply(&self, call: Call<'_>, threads: usize) {
        match self {
            Library::Gemm => by_gemm(call, threads),
            Library::Faer => by_faer(call, threads),
            Library::OpenBlas(library) => library.multiply(call, threads),
        }
    }
}

fn by_gemm(call: Call<'_>, threads: usize) {
    let parallelism = if threads > 1 {
        Parallelism::Rayon(threads)
    } else {
        Parallelism::None
    };
    let (rows, (from_input, from_output)) = (call.rows(), call.strides());
    // SAFETY: sizes and strides are those of the slices, as `Call` says.
    unsafe {
        gemm::gemm(
            rows,
            call.outputs,
            call.inputs,
            call.out.as_mut_ptr(),
            1,
            call.outputs as isize,
            false,
            call.x.as_ptr(),
            1,
            call.inputs as isize,
            call.weights.as_ptr(),
            from_output,
            from_input,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn by_faer(call: Call<'_>, threads: usize) {
    let par = if threads > 1 { Par::rayon(threads) } else { Par::Seq };
    let (rows, inputs, outputs) = (call.rows(), call.inputs, call.outputs);
    let weights = match call.layout {
        Layout::OutputMajor => MatRef::from_column_major_slice(call.weights, inputs, outputs),
        Layout::InputMajor => MatRef::from_row_major_slice(call.weights, inputs, outputs),
    };
    let x = MatRef::from_row_major_slice(call.x, rows, inputs);
    matmul(
        MatMut::from_row_major_slice_mut(call.out, rows, outputs),
        Accum::Replace,
        x,
        weights,
        1.0,
        par,
    );
}

impl OpenBlas {
    fn multiply(&self, call: Call<'_>, threads: usize) {
        const ROW_MAJOR: c_int = 101;
        const PLAIN: c_int = 111;
        const TRANSPOSED: c_int = 112;
        let (transposed, leading) = match call.layout {
            Layout::OutputMajor => (TRANSPOSED, call.inputs),
            Layout::InputMajor => (PLAIN, call.outputs),
        };
        let (rows, inputs, outputs) = (call.rows() as c_int, call.inputs as c_int, call.outputs as c_int);
        // SAFETY: sizes and strides are those of the slices, as `Call` says.
        unsafe {
            (self.set_threads)(threads as c_int);
            (self.sgemm)(
                ROW_MAJOR,
                PLAIN,
                transposed,
                rows,
                outputs,
                inputs,
                1.0,
                call.x.as_ptr(),
                inputs,
                call.weights.as_ptr(),
                leading as c_int,
                0.0,
                call.out.as_mut_ptr(),
                outputs,
            );
        }
    }
}
