//! Memory that hostile bytes make the decoders take. Alone in its binary, as it counts all
//! allocations.

mod common;

use common::{Random, header, seed};
use logchannel::codec::{EntryDecoder, decode_value, encode_value};
use logchannel::file::LogReader;
use logchannel::frame::{BODY_BYTES_MAX, Frame, FrameDecoder, FrameKind};
use logchannel::message::Message;
use logchannel::session::{IMAGE_BYTES_MAX, ImageAssembler};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter doesn't touch the
// memory.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is also that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout, as `alloc` and `realloc` go there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn largest_allocation(work: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    work();
    LARGEST.load(Ordering::Relaxed)
}

/// One test, as two at once would count each other's.
#[test]
fn a_claimed_length_takes_no_memory() {
    let mut random = Random(seed(30));

    let claims_much = [[3, 0xff, 0xff, 0xff, 0x7f].to_vec(), random.bytes(20)].concat();
    let largest = largest_allocation(|| assert!(EntryDecoder::new().decode(&mut &claims_much[..]).is_err()));
    assert!(largest < 4096, "an entry that claims a long frame took {largest} bytes");

    let mut decoder = FrameDecoder::new();
    let claim = u32::try_from(BODY_BYTES_MAX).unwrap().to_le_bytes();
    let largest = largest_allocation(|| decoder.push(&claim));
    assert!(largest <= 16 << 10, "a frame header that claims the longest body took {largest} bytes");

    let mut header = header(b"");
    header.image_bytes = IMAGE_BYTES_MAX as u64;
    let largest = largest_allocation(|| ImageAssembler::new(&header).push(&[1]).unwrap());
    assert!(largest < 4096, "a header that claims the largest image took {largest} bytes");

    let mut claims_text = Vec::new();
    encode_value(&(u64::MAX >> 1), &mut claims_text);
    let largest = largest_allocation(|| assert!(decode_value::<String>(&claims_text).is_err()));
    assert!(largest < 4096, "a text that claims to be endless took {largest} bytes");

    let largest = largest_allocation(|| {
        for _ in 0..5000 {
            let length = random.below(300);
            let body = random.bytes(length);
            let kind = FrameKind(random.next().to_le_bytes()[0] % 18);
            let _ = Message::decode(Frame { kind, body: &body });
            let _ = EntryDecoder::new().decode(&mut &body[..]);
            let _ = LogReader::open(&body[..]);
        }
    });
    assert!(largest <= BODY_BYTES_MAX, "random bytes took {largest} bytes");
}
