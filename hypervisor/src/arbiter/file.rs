//! Claims as files: `DIR/<vm>/<generation>.claim`.
//!
//! A claim is written to a temporary file, made durable, and then given its name by `link(2)`,
//! which fails if the name is taken. Local file systems and NFS both do that as one step, so a
//! claim is there whole or not at all, and once. A claim is never changed or removed, so that the
//! claim before it, which is read first, is still there. Temporary files begin with a dot, end with
//! their process and mean nothing.
//!
//! A link counts once its directory has been synced. The node that made it may have failed to do
//! that, or died before. So every answer that names a claim, also "it is yours already", syncs the
//! directory first, and is given only if that works.

use super::{Arbiter, ArbiterError, check_claim, record};
use crate::os::entropy;
use ft::claim::{Claim, Verdict, before, is_successor, verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CLAIM_SUFFIX: &str = ".claim";

/// An arbiter in a directory, which all nodes must share: on one host, or on a shared file system.
#[derive(Debug)]
pub struct FileArbiter {
    directory: PathBuf,
    /// The open directory, to which the path may not lead later; it also keeps an automounted file
    /// system mounted.
    opened: File,
    /// Syncs a directory, which makes what was created or linked in it durable; tests have their
    /// own.
    sync: fn(&Path) -> io::Result<()>,
}

impl FileArbiter {
    /// The arbiter in `directory`, which is created if only the last part of its path is missing,
    /// and tried.
    ///
    /// An empty directory counts as new. So keep the directory on a shared file system at least two
    /// levels below the mount point: then a node that starts while the file system isn't mounted
    /// fails here.
    ///
    /// # Errors
    /// [`ArbiterError::Directory`] if it can't hold claims.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, ArbiterError> {
        Self::open_with(directory.into(), sync_directory)
    }

    fn open_with(directory: PathBuf, sync: fn(&Path) -> io::Result<()>) -> Result<Self, ArbiterError> {
        let tried =
            make_directory(&directory, sync).and_then(|()| probe(&directory)).and_then(|()| File::open(&directory));
        match tried {
            Ok(opened) => Ok(Self { directory, opened, sync }),
            Err(source) => Err(ArbiterError::Directory { directory, source }),
        }
    }

    /// The directory of the claims.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn vm_directory(&self, vm: &VmId) -> PathBuf {
        self.directory.join(vm.as_str())
    }

    /// Checks that the path still leads to the directory that was opened. Where its file system was
    /// unmounted, an empty directory would give away again what has long been won.
    fn check_mounted(&self) -> io::Result<()> {
        let (opened, found) = (self.opened.metadata()?, fs::metadata(&self.directory)?);
        if (opened.dev(), opened.ino()) == (found.dev(), found.ino()) {
            Ok(())
        } else {
            Err(io::Error::other("its path leads to another directory now; is the file system mounted?"))
        }
    }

    /// The directory of a VM's claims; durably created.
    fn make_vm_directory(&self, vm: &VmId) -> io::Result<PathBuf> {
        self.check_mounted()?;
        let directory = self.vm_directory(vm);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Also if another process created it, which may not have synced it yet.
        (self.sync)(&self.directory)?;
        Ok(directory)
    }

    /// Errors of a directory that was once good are expected to pass: a full disk, a server that is
    /// down.
    fn unreachable(&self, source: io::Error) -> ArbiterError {
        ArbiterError::Unreachable { arbiter: format!("file:{}", self.directory.display()), source }
    }

    /// The durable claim of one generation, if there is one. The claim may have been linked a
    /// moment ago by a process that hasn't synced the directory yet, so the directory is synced
    /// after reading and not before.
    fn read(&self, vm: &VmId, generation: Generation) -> Result<Option<Claim>, ArbiterError> {
        let directory = self.vm_directory(vm);
        let path = claim_path(&directory, generation);
        let mut text = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(record::BYTES_MAX as u64 + 1).read_to_end(&mut text))
            .and_then(|_| (self.sync)(&directory));
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.unreachable(source)),
        }
        record::read(&text, vm, generation)
            .map(Some)
            .map_err(|reason| ArbiterError::BadClaim { claim: path.display().to_string(), reason })
    }

    /// Makes the claim durably, in one step; `false` if there is one already.
    fn link_claim(&self, directory: &Path, vm: &VmId, generation: Generation, claim: &Claim) -> io::Result<bool> {
        let temporary = TemporaryFile::create(directory, record::write(vm, generation, claim).as_bytes())?;
        match fs::hard_link(&temporary.path, claim_path(directory, generation)) {
            Ok(()) => {
                (self.sync)(directory)?;
                Ok(true)
            }
            // On NFS also if this link was made and the answer was lost: the content tells whose it
            // is.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`FileArbiter::read`], for a generation that has a claim.
    fn read_claimed(&self, vm: &VmId, generation: Generation) -> Result<Claim, ArbiterError> {
        let vanished = || self.unreachable(io::Error::other("a claim has vanished while it was looked for"));
        self.read(vm, generation)?.ok_or_else(vanished)
    }
}

impl Arbiter for FileArbiter {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        check_claim(claim)?;
        let directory = self.make_vm_directory(vm).map_err(|source| self.unreachable(source))?;
        // A claim never changes, so what is read here still holds when the link is made: the two
        // act as one step.
        let before = before(generation).map(|before| self.read(vm, before)).transpose()?.flatten();
        if !is_successor(generation, predecessor, before.as_ref()) {
            let decided = self.read(vm, generation)?;
            return Ok(decided.map_or(Verdict::NotSuccessor(before), |holder| verdict(claim, holder)));
        }
        let linked = self.link_claim(&directory, vm, generation, claim).map_err(|source| self.unreachable(source))?;
        if linked { Ok(Verdict::Won) } else { Ok(verdict(claim, self.read_claimed(vm, generation)?)) }
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        self.check_mounted().map_err(|source| self.unreachable(source))?;
        let generation = match fs::read_dir(self.vm_directory(vm)) {
            Ok(mut names) => {
                names.try_fold(None, |latest, name| Ok(latest.max(claimed_generation(&name?.file_name()))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        match generation.map_err(|source| self.unreachable(source))? {
            Some(generation) => Ok(Some((generation, self.read_claimed(vm, generation)?))),
            None => Ok(None),
        }
    }
}

fn claim_path(directory: &Path, generation: Generation) -> PathBuf {
    directory.join(format!("{generation}{CLAIM_SUFFIX}"))
}

/// The generation that a file of this name is the claim of; `None` for temporary and foreign files.
fn claimed_generation(name: &std::ffi::OsStr) -> Option<Generation> {
    let digits = name.to_str()?.strip_suffix(CLAIM_SUFFIX)?;
    let generation = digits.parse().ok()?;
    // `007.claim` is foreign: a generation has one name.
    (u64::to_string(&generation) == digits).then_some(Generation(generation))
}

/// Tries everything that making a claim needs.
fn probe(directory: &Path) -> io::Result<()> {
    let source = TemporaryFile::create(directory, b"")?;
    let link = TemporaryFile { path: temporary_path(directory) };
    fs::hard_link(&source.path, &link.path)?;
    sync_directory(directory)
}

fn temporary_path(directory: &Path) -> PathBuf {
    directory.join(format!(".{}.tmp", entropy::node_id()))
}

/// Creates `directory` durably: a claim must not be lost together with its directory.
///
/// Creates only the last part of the path: if more is missing, the file system that holds the
/// claims may not be mounted, and an empty directory instead of it would grant again what has long
/// been won.
fn make_directory(directory: &Path, sync: fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::create_dir(directory) {
        Ok(()) => sync(parent),
        // Another process may have created it without syncing it yet. A process that may not read
        // the parent can't have.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match sync(parent) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            format!("{} is not there; make it, or mount its file system", parent.display()),
        )),
        Err(error) => Err(error),
    }
}

/// Makes what was created, linked or removed in `directory` durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A durable file that is removed when this is dropped.
struct TemporaryFile {
    path: PathBuf,
}

impl TemporaryFile {
    fn create(directory: &Path, content: &[u8]) -> io::Result<Self> {
        let temporary = Self { path: temporary_path(directory) };
        let mut file = File::create_new(&temporary.path)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(temporary)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // A file left behind is harmless, and one that was never made is no error.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft::claim::ClaimKind;
    use std::cell::{Cell, RefCell};

    thread_local! {
        static FAILS: Cell<bool> = const { Cell::new(false) };
        /// The directories that were synced, and how many claims were in each then.
        static SYNCED: RefCell<Vec<(PathBuf, usize)>> = const { RefCell::new(Vec::new()) };
    }

    /// A disk that fails if the test says so.
    fn sync(directory: &Path) -> io::Result<()> {
        if FAILS.get() {
            return Err(io::Error::other("the disk is gone"));
        }
        let names = fs::read_dir(directory)?.flatten();
        let claims = names.filter(|name| claimed_generation(&name.file_name()).is_some()).count();
        SYNCED.with_borrow_mut(|synced| synced.push((directory.to_owned(), claims)));
        Ok(())
    }

    /// Does something while the disk fails.
    fn failing<T>(act: impl FnOnce() -> T) -> T {
        FAILS.set(true);
        let result = act();
        FAILS.set(false);
        result
    }

    fn claim(node: u128) -> Claim {
        Claim { node: NodeId(node), kind: ClaimKind::Owner, address: None }
    }

    struct Site {
        _directory: tempfile::TempDir,
        arbiter: FileArbiter,
        vm: VmId,
    }

    impl Site {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let arbiter = FileArbiter::open_with(directory.path().join("claims"), sync).unwrap();
            Self { _directory: directory, arbiter, vm: VmId::new("vm0").unwrap() }
        }

        /// Makes a claim whose maker comes to the link, and no further.
        fn link_unsynced(&self, flag: u64, node: u128) {
            let directory = self.arbiter.make_vm_directory(&self.vm).unwrap();
            let unlucky = || self.arbiter.link_claim(&directory, &self.vm, Generation(flag), &claim(node));
            assert!(failing(unlucky).is_err());
            assert!(claim_path(&directory, Generation(flag)).exists(), "the claim is there");
            SYNCED.take();
        }

        fn ask(&self, flag: u64, node: u128, predecessor: Option<u128>) -> Result<Verdict, ArbiterError> {
            self.arbiter.test_and_set(&self.vm, Generation(flag), &claim(node), predecessor.map(NodeId))
        }

        /// Whether the VM's directory was synced when it had so many claims.
        fn was_synced_with(&self, claims: usize) -> bool {
            SYNCED.take().contains(&(self.arbiter.vm_directory(&self.vm), claims))
        }
    }

    #[test]
    fn a_claim_that_was_linked_and_not_synced_is_not_answered_before_it_is_synced() {
        let site = Site::new();
        site.link_unsynced(0, 1);
        for node in [1, 2] {
            let error = failing(|| site.ask(0, node, None)).unwrap_err();
            assert!(error.is_unreachable(), "node {node}: {error}");
        }
        assert!(failing(|| site.arbiter.latest(&site.vm)).unwrap_err().is_unreachable());
        SYNCED.take();
        assert_eq!(site.ask(0, 1, None).unwrap(), Verdict::Won, "it is this node's already");
        assert!(site.was_synced_with(1), "and was told without a sync");
        assert_eq!(site.ask(0, 2, None).unwrap(), Verdict::Lost(claim(1)));
        assert!(site.was_synced_with(1));
        assert_eq!(site.arbiter.latest(&site.vm).unwrap(), Some((Generation(0), claim(1))));
        assert!(site.was_synced_with(1));
    }

    #[test]
    fn a_claim_is_granted_behind_one_that_is_synced_only() {
        let site = Site::new();
        site.link_unsynced(0, 1);
        assert!(failing(|| site.ask(1, 2, Some(1))).unwrap_err().is_unreachable());
        assert_eq!(site.arbiter.latest(&site.vm).unwrap().map(|(flag, _)| flag), Some(Generation(0)));
        SYNCED.take();
        // Refused, the claim before is named.
        assert_eq!(site.ask(1, 3, Some(9)).unwrap(), Verdict::NotSuccessor(Some(claim(1))));
        assert!(site.was_synced_with(1));
        // Another process has made this one, and is gone.
        site.link_unsynced(1, 2);
        assert_eq!(site.ask(1, 2, None).unwrap(), Verdict::Won, "whatever is known of the claim before");
        assert!(site.was_synced_with(2), "and was told without a sync");
    }

    #[test]
    fn directories_that_another_process_has_made_are_synced_before_a_claim_is_made_in_them() {
        let site = Site::new();
        let claims = site.arbiter.directory().to_owned();
        let again = FileArbiter::open_with(claims.clone(), sync).unwrap();
        let synced = SYNCED.take().into_iter().map(|(directory, _)| directory);
        let parent = claims.parent().unwrap();
        assert_eq!(synced.filter(|directory| directory == parent).count(), 2, "by whom it was made, and by the other");
        assert!(failing(|| FileArbiter::open_with(claims.clone(), sync)).is_err());
        assert!(failing(|| again.make_vm_directory(&site.vm)).is_err());
        assert!(again.vm_directory(&site.vm).exists());
        again.make_vm_directory(&site.vm).unwrap();
        assert_eq!(SYNCED.take(), [(claims, 0)]);
    }
}
