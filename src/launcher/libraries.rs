//! Libraries of the Python environment in which the program is installed: the engine of a wheel finds libtorch, Open MPI and
//! NCCL there.
//!
//! A program that was built on this machine contains their folders (`build.rs`) and needs nothing more. Not here: which
//! libraries the engine finally loads (`commands/doctor.rs`).

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Folders that the dynamic linker searches before those that are written into a program.
pub(crate) const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

/// The signal for which UCX installs a handler when it is loaded; 0: none. Its default is SIGHUP, which undoes nohup. Open
/// MPI's wheel contains UCX, as do many clusters' installations.
const SIGNAL_OF_UCX: &str = "UCX_DEBUG_SIGNO";

/// Settings of libtorch's allocator of GPU memory, by their current and an older name; read when libtorch starts.
const ALLOCATOR: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// Blocks grow in place, so that buffers of changing sizes do not fragment the memory.
const GROWING: &str = "expandable_segments:True";

/// The version of libtorch that the engine was built with, such as 2.13.0.
const BUILT_WITH: &str = env!("HAF_DIST_LIBTORCH_VERSION");

/// Where `launch/setup.sh` installs Open MPI on a machine that has none; `.deps/env.sh` names it, too, for shells.
const SETUP_MPI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.deps/openmpi/bin");

/// The file name of Open MPI's library in versions 2 to 5.
const MPI: &str = "libmpi.so.40";

/// NCCL's only file in its Python package, and the name by which the engine loads it.
const NCCL: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The variables to set for an engine at this path, in addition to this process's environment.
///
/// # Errors
/// As [`search_path`].
pub(crate) fn variables(engine: &Path) -> Result<Vec<(&'static str, OsString)>> {
    let path = search_path(engine, std::env::var_os(SEARCH_PATH))?.map(|path| (SEARCH_PATH, path));
    let defaults = defaults(|name| std::env::var_os(name).is_some());
    Ok(path.into_iter().chain(defaults.map(|(name, value)| (name, value.into()))).collect())
}

/// Variables that are set unless the user has set them.
fn defaults(is_set: impl Fn(&str) -> bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let ucx = (!is_set(SIGNAL_OF_UCX)).then_some((SIGNAL_OF_UCX, "0"));
    let allocator = (!ALLOCATOR.iter().any(|name| is_set(name))).then_some((ALLOCATOR[0], GROWING));
    ucx.into_iter().chain(allocator)
}

/// The value of [`SEARCH_PATH`] for an engine at this path; `None` if it can keep the current value, `current`.
///
/// # Errors
/// The engine came in a wheel, and its environment has no PyTorch, or one of another version than the engine was built with.
pub(crate) fn search_path(engine: &Path, current: Option<OsString>) -> Result<Option<OsString>> {
    let Some(environment) = Environment::of(engine) else { return Ok(None) };
    // Before the current folders: the environment's mpirun does not work with another MPI's library.
    let mut folders = vec![environment.libtorch(BUILT_WITH)?];
    folders.extend(environment.folder_of_mpi());
    folders.extend(environment.folder_of_nccl());
    folders.extend(current.iter().flat_map(std::env::split_paths).filter(|folder| !folder.as_os_str().is_empty()));
    let joined = std::env::join_paths(folders)
        .map_err(|error| Error::input(format!("{SEARCH_PATH} cannot hold the environment's folders: {error}")))?;
    Ok(Some(joined))
}

/// The mpirun that belongs to an engine at this path: that of its Python environment, if there is one; for an engine that was
/// built on this machine, the one that `launch/setup.sh` installed, whose library the engine is linked to.
pub(crate) fn mpirun(engine: &Path) -> Option<PathBuf> {
    mpirun_of(engine, Path::new(SETUP_MPI))
}

fn mpirun_of(engine: &Path, setup_mpi: &Path) -> Option<PathBuf> {
    let folder = match Environment::of(engine) {
        Some(environment) => environment.folder_of_mpi().map(|_| environment.prefix.join("bin"))?,
        None => setup_mpi.to_path_buf(),
    };
    Some(folder.join("mpirun")).filter(|path| path.is_file())
}

/// A Python environment with haf-dist's wheel in it.
struct Environment {
    /// The folder with bin/ and lib/.
    prefix: PathBuf,
    /// Its package folders, including those of its base Python if they are visible.
    packages: Vec<PathBuf>,
}

impl Environment {
    /// The environment whose bin/ contains the program; `None` for a program that was not installed from a wheel.
    fn of(program: &Path) -> Option<Self> {
        let prefix = program.parent().filter(|folder| folder.ends_with("bin"))?.parent()?.to_path_buf();
        let mut packages = packages(&prefix);
        packages.iter().any(|folder| holds_wheel(folder)).then_some(())?;
        if let Some(base) = base(&prefix) {
            packages.extend(self::packages(&base));
            packages.extend(self::packages(&base.join("local")));
        }
        Some(Self { prefix, packages })
    }

    fn libtorch(&self, wanted: &str) -> Result<PathBuf> {
        let install = format!("pip install torch=={wanted}, in {}", self.prefix.display());
        let found = self.packages.iter().map(|folder| folder.join("torch"));
        let Some(torch) = found.into_iter().find(|torch| torch.join("lib/libtorch_cpu.so").is_file()) else {
            let text = format!("PyTorch is not in {}, but haf-dist needs its libtorch", self.prefix.display());
            return Err(Error::input(text).hint(install));
        };
        match version(&torch) {
            Some(version) if !same_release(&version, wanted) => Err(Error::input(format!(
                "{} is PyTorch {version}, but haf-dist was built with {wanted}",
                torch.display()
            ))
            .hint(install)),
            _ => Ok(torch.join("lib")),
        }
    }

    fn folder_of_mpi(&self) -> Option<PathBuf> {
        Some(self.prefix.join("lib")).filter(|folder| folder.join(MPI).is_file())
    }

    /// A folder of the environment with a link to NCCL under the name that the engine loads; `None` where there is no NCCL, or no
    /// link and no right to make one.
    fn folder_of_nccl(&self) -> Option<PathBuf> {
        let [packaged, loaded] = NCCL;
        let library = self.packages.iter().map(|folder| folder.join("nvidia/nccl/lib").join(packaged));
        let library = library.into_iter().find(|library| library.is_file())?;
        let folder = self.prefix.join("lib/haf-dist");
        link(&library, &folder, loaded).then_some(folder)
    }
}

/// Makes the link in that folder, or leaves the one that is right; whether it is there then. Other ranks may be making it.
fn link(target: &Path, folder: &Path, name: &str) -> bool {
    let link = folder.join(name);
    let is_right = || std::fs::read_link(&link).is_ok_and(|found| found == target);
    if !is_right() {
        let own = folder.join(format!("{name}.{}", std::process::id()));
        let made = std::fs::create_dir_all(folder)
            .and_then(|()| std::os::unix::fs::symlink(target, &own))
            .and_then(|()| std::fs::rename(&own, &link));
        if made.is_err() {
            let _ = std::fs::remove_file(&own);
        }
    }
    is_right()
}

/// Folders of packages below a prefix, of every Python 3 there.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let pythons =
        ["lib", "lib64"].into_iter().flat_map(|lib| std::fs::read_dir(prefix.join(lib)).into_iter().flatten());
    let pythons = pythons.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
    // Debian calls its own folders dist-packages.
    pythons
        .flat_map(|entry| ["site-packages", "dist-packages"].map(|name| entry.path().join(name)))
        .filter(|folder| folder.is_dir())
        .collect()
}

fn holds_wheel(packages: &Path) -> bool {
    std::fs::read_dir(packages).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("haf_dist-") && name.ends_with(".dist-info")
    })
}

/// The prefix of a virtual environment's base Python, if the environment makes its packages visible.
fn base(prefix: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(prefix.join("pyvenv.cfg")).ok()?;
    let value = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    value("include-system-site-packages").filter(|shown| shown.eq_ignore_ascii_case("true"))?;
    Some(Path::new(&value("home")?).parent()?.to_path_buf())
}

/// The `__version__` of an installed PyTorch.
fn version(torch: &Path) -> Option<String> {
    let text = std::fs::read_to_string(torch.join("version.py")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(value.trim_matches(['\'', '"']).to_owned())
}

/// Whether two versions differ at most in the platform they were built for: 2.13.0 and 2.13.0+cu130.
fn same_release(one: &str, other: &str) -> bool {
    let release = |version: &str| version.split('+').next().map(str::to_owned);
    release(one) == release(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Creates an environment with the wheel, and returns its engine.
    fn environment(folder: &Path) -> PathBuf {
        fs::create_dir_all(folder.join("lib/python3.12/site-packages/haf_dist-0.1.0.dist-info")).unwrap();
        fs::create_dir_all(folder.join("bin")).unwrap();
        folder.join("bin/haf-dist-engine")
    }

    fn add_torch(packages: &Path, version: &str) {
        fs::create_dir_all(packages.join("torch/lib")).unwrap();
        fs::write(packages.join("torch/lib/libtorch_cpu.so"), "").unwrap();
        fs::write(packages.join("torch/version.py"), format!("debug = False\n__version__ = '{version}'\n")).unwrap();
    }

    #[test]
    fn a_wheel_finds_its_environments_libraries_before_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let engine = environment(folder.path());
        add_torch(&folder.path().join("lib/python3.12/site-packages"), &format!("{BUILT_WITH}+cu130"));
        let lib = folder.path().join("lib");
        let path = |current: Option<&str>| {
            let joined = search_path(&engine, current.map(OsString::from)).unwrap().unwrap();
            std::env::split_paths(&joined).collect::<Vec<_>>()
        };
        let torch = lib.join("python3.12/site-packages/torch/lib");
        assert_eq!(path(None), std::slice::from_ref(&torch));
        assert_eq!(mpirun(&engine), None);
        fs::write(lib.join(MPI), "").unwrap();
        fs::write(folder.path().join("bin/mpirun"), "").unwrap();
        // An empty entry would be the current folder.
        assert_eq!(path(Some("/opt/a::/opt/b")), [torch, lib, "/opt/a".into(), "/opt/b".into()]);
        assert_eq!(mpirun(&engine), Some(folder.path().join("bin/mpirun")));
    }

    #[test]
    fn the_engine_of_a_wheel_finds_nccl_under_the_name_that_it_loads() {
        let folder = tempfile::tempdir().unwrap();
        let engine = environment(folder.path());
        let packages = folder.path().join("lib/python3.12/site-packages");
        add_torch(&packages, BUILT_WITH);
        let nccl = || {
            let joined = search_path(&engine, None).unwrap().unwrap();
            std::env::split_paths(&joined).map(|folder| folder.join("libnccl.so")).find(|file| file.exists())
        };
        assert_eq!(nccl(), None);
        let library = packages.join("nvidia/nccl/lib/libnccl.so.2");
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        fs::write(&library, "").unwrap();
        for found in [nccl(), nccl()] {
            assert_eq!(fs::canonicalize(found.unwrap()).unwrap(), fs::canonicalize(&library).unwrap());
        }
        // A link of an environment that was moved is made anew.
        let link = folder.path().join("lib/haf-dist/libnccl.so");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        assert_eq!(nccl(), Some(link));
    }

    #[test]
    fn the_engines_gpu_memory_grows_in_place_unless_the_user_has_said_how_it_is_given() {
        let set = |known: &'static [&str]| defaults(|name| known.contains(&name)).collect::<Vec<_>>();
        let [ucx, allocator] = [("UCX_DEBUG_SIGNO", "0"), ("PYTORCH_ALLOC_CONF", "expandable_segments:True")];
        assert_eq!(set(&[]), [ucx, allocator]);
        assert_eq!(set(&["UCX_DEBUG_SIGNO"]), [allocator]);
        for name in ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"] {
            assert_eq!(defaults(|other| other == name).collect::<Vec<_>>(), [ucx]);
        }
    }

    #[test]
    fn a_program_that_was_built_here_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("bin")).unwrap();
        add_torch(&folder.path().join("lib/python3.12/site-packages"), "1.0.0");
        for engine in ["bin/haf-dist-engine", "release/haf-dist-engine"] {
            assert_eq!(search_path(&folder.path().join(engine), Some("/opt/a".into())).unwrap(), None);
        }
    }

    #[test]
    fn an_open_mpi_that_was_laid_out_for_the_build_is_its_programs_and_no_wheels() {
        let folder = tempfile::tempdir().unwrap();
        let (laid_out, built) = (folder.path().join("laid-out"), folder.path().join("release/haf-dist-engine"));
        assert_eq!(mpirun_of(&built, &laid_out), None);
        fs::create_dir_all(&laid_out).unwrap();
        fs::write(laid_out.join("mpirun"), "").unwrap();
        assert_eq!(mpirun_of(&built, &laid_out), Some(laid_out.join("mpirun")));
        assert_eq!(mpirun_of(&environment(&folder.path().join("wheel")), &laid_out), None);
    }

    #[test]
    fn no_pytorch_or_another_one_is_an_error_that_says_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let engine = environment(folder.path());
        for (version, says) in [(None, "PyTorch is not in"), (Some("2.12.1+cpu"), "is PyTorch 2.12.1+cpu, but")] {
            if let Some(version) = version {
                add_torch(&folder.path().join("lib/python3.12/site-packages"), version);
            }
            let error = search_path(&engine, None).unwrap_err();
            assert!(error.message.contains(says), "{error}");
            assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("pip install torch==")), "{error}");
        }
    }

    #[test]
    fn an_environment_that_shows_the_pythons_it_is_made_from_finds_pytorch_there() {
        let folder = tempfile::tempdir().unwrap();
        let (own, base) = (folder.path().join("own"), folder.path().join("base"));
        let engine = environment(&own);
        add_torch(&base.join("lib/python3.12/site-packages"), BUILT_WITH);
        let config = |shown: &str| {
            let home = base.join("bin");
            format!("home = {}\ninclude-system-site-packages = {shown}\nversion = 3.12.3\n", home.display())
        };
        fs::write(own.join("pyvenv.cfg"), config("false")).unwrap();
        assert!(search_path(&engine, None).is_err());
        fs::write(own.join("pyvenv.cfg"), config("true")).unwrap();
        let expected = base.join("lib/python3.12/site-packages/torch/lib").into_os_string();
        assert_eq!(search_path(&engine, None).unwrap(), Some(expected));
    }
}
