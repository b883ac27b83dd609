//! Images of guests of a few instructions.

const RAM: u64 = 0x8000_0000;
const WFI: u32 = 0x1050_0073;

/// Jumps to the previous instruction.
pub(crate) const JUMP_BACK_ONE: u32 = 0xffdf_f06f;

/// An ELF executable with `code` at the start of RAM, followed by an endless sleep.
pub(crate) fn image(code: &[u32]) -> Vec<u8> {
    let code: Vec<u8> = code.iter().chain(&[WFI, JUMP_BACK_ONE]).flat_map(|word| word.to_le_bytes()).collect();
    let mut image = vec![0; 120];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(16, &[2, 0, 243, 0, 1]);
    put(24, &RAM.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0, 64]);
    put(64, &1_u32.to_le_bytes());
    put(72, &120_u64.to_le_bytes());
    put(80, &RAM.to_le_bytes());
    put(88, &RAM.to_le_bytes());
    put(96, &(code.len() as u64).to_le_bytes());
    put(104, &(code.len() as u64).to_le_bytes());
    image.extend_from_slice(&code);
    image
}
