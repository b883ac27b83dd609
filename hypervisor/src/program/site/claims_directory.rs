//! The default arbiter's directory: not where temporary files are removed, and not where other
//! users may write.

use crate::arbiter::{ArbiterError, FileArbiter};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The directory that a service manager names, else root's state directory, else the user's; `None`
/// if no variable names one.
fn default_directory(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // A service may have several directories, separated by colons.
    let of_service = set("STATE_DIRECTORY").and_then(|all| {
        let first = all.to_str()?.split(':').next()?;
        Some(PathBuf::from(first))
    });
    let of_user = || Some(set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?.join("ft"));
    of_service
        .or_else(|| if is_root { Some("/var/lib/ft".into()) } else { of_user() })
        .filter(|path| path.is_absolute())
}

/// The arbiter in the default directory, which is created if it doesn't exist.
///
/// # Errors
/// [`ArbiterError::Directory`] if it can't be made, or isn't this user's alone: whoever can write
/// to it decides who owns a VM.
pub(in crate::program) fn open_default() -> Result<FileArbiter, ArbiterError> {
    let is_root = nix::unistd::geteuid().is_root();
    let Some(directory) = default_directory(|name| std::env::var_os(name), is_root) else {
        let reason = "none of STATE_DIRECTORY, XDG_STATE_HOME and HOME says where; say it with --arbiter file:DIR";
        let source = io::Error::new(io::ErrorKind::NotFound, reason);
        return Err(ArbiterError::Directory { directory: "ft".into(), source });
    };
    match make_private(&directory) {
        Ok(()) => FileArbiter::open(directory),
        Err(source) => Err(ArbiterError::Directory { directory, source }),
    }
}

/// Warns if other users could decide who owns a VM by writing to `directory`, which may be shared
/// on purpose.
pub(in crate::program) fn warn_of_others(directory: &Path) {
    if let Ok(found) = fs::symlink_metadata(directory)
        && let Some(reason) = strangers(&found, 0o022)
    {
        tracing::warn!("the claims in {} could be changed by others: {reason}", directory.display());
    }
}

/// Makes `directory` and its parents durably, the last of mode 0700; checks it if it is there.
fn make_private(directory: &Path) -> io::Result<()> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => File::open(parent)?.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    match strangers(&fs::symlink_metadata(directory)?, 0o077) {
        None => Ok(()),
        Some(reason) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{reason}; chmod 700 it (of a service: StateDirectoryMode=0700), or name another with --arbiter file:DIR"
            ),
        )),
    }
}

/// Why other users can write to `found`; `mode` are the permissions that only its user may have.
fn strangers(found: &Metadata, mode: u32) -> Option<String> {
    let user = nix::unistd::geteuid().as_raw();
    if found.is_symlink() {
        Some("it is a symbolic link".into())
    } else if !found.is_dir() {
        Some("it is no directory".into())
    } else if found.uid() != user {
        Some(format!("it belongs to user {}, and this process runs as user {user}", found.uid()))
    } else if found.permissions().mode() & mode != 0 {
        Some(format!("its mode is {:04o}", found.permissions().mode() & 0o7777))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_where_state_is_kept() {
        let of = |set: &[(&str, &str)], is_root| {
            let set: Vec<_> = set.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
            default_directory(|name| set.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone()), is_root)
        };
        let home = [("HOME", "/home/a")];
        let all = [("STATE_DIRECTORY", "/var/lib/x:/var/lib/y"), ("XDG_STATE_HOME", "/s"), home[0]];
        for is_root in [false, true] {
            assert_eq!(of(&all, is_root), Some("/var/lib/x".into()));
        }
        assert_eq!(of(&all[1..], true), Some("/var/lib/ft".into()));
        assert_eq!(of(&all[1..], false), Some("/s/ft".into()));
        assert_eq!(of(&home, false), Some("/home/a/.local/state/ft".into()));
        assert_eq!(of(&[("HOME", "")], false), None);
        assert_eq!(of(&[("XDG_STATE_HOME", "s")], false), None, "where that is depends on where it is started");
    }

    #[test]
    fn a_directory_that_others_have_a_say_in_is_refused() {
        let site = tempfile::tempdir().unwrap();
        let directory = site.path().join("a/b/ft");
        make_private(&directory).unwrap();
        make_private(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        for mode in [0o770, 0o707, 0o755] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            let error = make_private(&directory).unwrap_err().to_string();
            assert!(error.contains("its mode is 0") && error.contains("chmod 700"), "{error}");
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let link = site.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(make_private(&link).unwrap_err().to_string().contains("symbolic link"));
    }
}
