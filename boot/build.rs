//! Puts the kernel where `src/kernel_file.rs` includes it from, and gives the linker its script.

use std::path::PathBuf;
use std::{env, fs, process};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=loader.ld");
    println!("cargo::rerun-if-env-changed=VRINGLET_KERNEL");

    let bare_metal = env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let kernel = match env::var_os("VRINGLET_KERNEL") {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| {
                println!(
                    "cargo::error=VRINGLET_KERNEL={}: {error}; it must name the kernel's ELF file",
                    path.display()
                );
                process::exit(1);
            })
        }
        // check, clippy and doc need no kernel; a loader without one says so when it runs.
        None => {
            if bare_metal {
                println!(
                    "cargo::warning=VRINGLET_KERNEL is not set (the path of the kernel's ELF file): \
                     this loader carries no kernel and will only say so"
                );
            }
            Vec::new()
        }
    };
    fs::write(out.join("kernel.elf"), kernel).expect("OUT_DIR is writable");

    if bare_metal {
        let script = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("loader.ld");
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
