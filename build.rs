//! Lets the binary and the tests find libtorch at run time without LD_LIBRARY_PATH.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        // Nothing names a symbol of libtorch_cuda, so the linker would drop it, and libtorch would see no GPU.
        if std::path::Path::new(&folder).join("libtorch_cuda.so").exists() {
            for argument in ["-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"] {
                println!("cargo:rustc-link-arg={argument}");
            }
        }
    }
}
