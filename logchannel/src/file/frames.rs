//! The frames of a file, read on demand.

use super::LogFileError;
use crate::frame::{FRAME_HEADER_BYTES, Frame, FrameDecoder, FrameError, FrameKind};
use std::io::{self, Read};

#[derive(Debug)]
pub(super) struct FrameSource<R: Read> {
    input: R,
    pub(super) decoder: FrameDecoder,
    at_end: bool,
}

impl<R: Read> FrameSource<R> {
    /// The frames of `input`; `decoder` knows the offset at which it begins.
    pub(super) const fn new(input: R, decoder: FrameDecoder) -> Self {
        Self { input, decoder, at_end: false }
    }

    /// The next frame; `Ok(None)` if the input ends before one is whole. The outer error is the
    /// input's.
    pub(super) fn next_frame(&mut self) -> Result<Result<Option<Frame<'_>>, FrameError>, LogFileError> {
        while self.decoder.missing() > 0 && !self.at_end {
            self.read_some()?;
        }
        Ok(self.decoder.next_frame())
    }

    /// The kind that the next frame claims, whole or not; `None` if the input ends before.
    pub(super) fn peek_kind(&mut self) -> Result<Option<FrameKind>, LogFileError> {
        self.fill(FRAME_HEADER_BYTES)?;
        Ok(self.decoder.unread().get(FRAME_HEADER_BYTES - 1).copied().map(FrameKind))
    }

    /// The body of the next frame, which must be whole and of `kind`: without this `part` the log
    /// can't be replayed.
    pub(super) fn head_frame_of(&mut self, part: &'static str, kind: FrameKind) -> Result<&[u8], LogFileError> {
        let offset = self.decoder.offset();
        while self.decoder.missing() > 0 {
            if self.at_end {
                return Err(LogFileError::Truncated { offset: offset + self.decoder.unread().len() as u64, part });
            }
            self.read_some()?;
        }
        match self.decoder.next_frame() {
            Ok(Some(frame)) if frame.kind == kind => Ok(frame.body),
            Ok(Some(frame)) => Err(LogFileError::UnexpectedFrame { offset, kind: frame.kind, part }),
            Ok(None) => unreachable!("nothing is missing of the frame"),
            Err(source) => Err(LogFileError::DamagedHead { part, source }),
        }
    }

    /// Reads until `bytes` are unread or the input ends.
    pub(super) fn fill(&mut self, bytes: usize) -> Result<(), LogFileError> {
        while self.decoder.unread().len() < bytes && !self.at_end {
            self.read_some()?;
        }
        Ok(())
    }

    /// Reads to the end of the input, and returns how many bytes those were.
    pub(super) fn skip_rest(&mut self) -> Result<u64, LogFileError> {
        let offset = self.decoder.offset();
        io::copy(&mut self.input, &mut io::sink()).map_err(|source| LogFileError::Io { offset, source })
    }

    fn read_some(&mut self) -> Result<(), LogFileError> {
        let offset = self.decoder.offset() + self.decoder.unread().len() as u64;
        match self.input.read(self.decoder.space()) {
            Ok(0) => self.at_end = true,
            Ok(bytes) => self.decoder.filled(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(LogFileError::Io { offset, source }),
        }
        Ok(())
    }
}
