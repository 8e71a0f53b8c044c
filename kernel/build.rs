//! Hands the linker the kernel's layout: linked in the top 2 GiB, symbol table kept.

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    let bare_metal = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if bare_metal {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bins=-T{folder}/kernel.ld");
    }
}
