//! The machine: processor, memory, GPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Finding, State};
use crate::device::Isa;
use crate::metrics::memory;

/// The processor's name and the instruction sets that Sluice's kernels can use.
pub fn processor() -> Vec<Finding> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu_name(&info).unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH));
    vec![Finding::new(State::Found, "processor", name), instruction_sets()]
}

/// The first `model name` of /proc/cpuinfo.
fn cpu_name(info: &str) -> Option<String> {
    let value = info.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(value.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// The instruction set that the kernels will use, of those that this processor (and its operating system) has.
fn instruction_sets() -> Finding {
    let all: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    match Isa::detect() {
        Err(error) => Finding::new(State::Missing, "instructions", format!("{error:#}")),
        Ok(Isa::Portable) if all.len() == 1 => Finding::new(State::Warning, "instructions", "neither AVX2 nor AVX-512")
            .cure("the portable kernels run, slowly; use a processor with one of them"),
        Ok(isa) => Finding::new(
            State::Found,
            "instructions",
            format!("{} (there are {})", isa.name(), all.join(", ")),
        ),
    }
}

/// Memory that is available, and a limit that a container or a Slurm job sets.
pub fn memory() -> Vec<Finding> {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    let Some(machine) = memory::machine() else {
        return vec![Finding::new(
            State::Note,
            "memory",
            "the system doesn't say (/proc/meminfo)",
        )];
    };
    let limit = machine
        .limit
        .map(|limit| format!("; limit of this job or container: {}", gib(limit)));
    let (available, total) = (gib(machine.available), gib(machine.total));
    let found = format!("{available} of {total} available{}", limit.unwrap_or_default());
    vec![Finding::new(State::Found, "memory", found)]
}

/// NVIDIA's driver and GPUs. This build computes on the processor.
pub fn gpu() -> Vec<Finding> {
    let driver = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let library = libcuda();
    let mut found = match (&driver, &library) {
        (None, None) => {
            return vec![Finding::new(
                State::Note,
                "GPU",
                "no NVIDIA driver; this build computes on the processor",
            )]
        }
        (_, Some(library)) => format!("driver library {}", library.display()),
        (Some(_), None) => "NVIDIA's kernel driver without its library libcuda.so.1".to_owned(),
    };
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    match Command::new("nvidia-smi").args(query).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            found += &text
                .lines()
                .map(|line| format!("; {}", line.trim()))
                .collect::<String>();
        }
        _ => found += "; nvidia-smi is not there or finds none",
    }
    vec![Finding::new(State::Note, "GPU", found)
        .cure("nothing: this build has no CUDA device yet and computes on the processor")]
}

/// Where the driver's library lies.
fn libcuda() -> Option<PathBuf> {
    let named = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
    ];
    let folders = named.split(':').filter(|folder| !folder.is_empty()).chain(usual);
    let mut libraries = folders.map(|folder| Path::new(folder).join("libcuda.so.1"));
    libraries.find(|path| path.exists())
}

/// The file of a library that /proc/self/maps shows.
pub fn mapped_library(maps: &str, name: &str) -> Option<String> {
    let paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
    let is_it = |path: &&str| path.rsplit('/').next().is_some_and(|file| file.starts_with(name));
    paths.filter(is_it).map(str::to_owned).min_by_key(String::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_files_are_understood() {
        assert_eq!(
            cpu_name("processor\t: 0\nmodel name\t: AMD EPYC 9R45\n"),
            Some("AMD EPYC 9R45".to_owned())
        );
        assert_eq!(cpu_name("CPU part : 0xd40"), None);
        let maps = "7f-80 r--p 00 00:1 5 /usr/lib/libhdf5_serial_hl.so.100\n7f-80 r--p 0 0 5 /usr/lib/libhdf5_serial.so.103.3.0\n7f r 0";
        assert_eq!(
            mapped_library(maps, "libhdf5").as_deref(),
            Some("/usr/lib/libhdf5_serial_hl.so.100")
        );
        assert_eq!(mapped_library(maps, "libcuda"), None);
    }
}
