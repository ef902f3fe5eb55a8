//! An address as four words, which is how the CPU moves it.

use dataplane_common::Addr16;

/// An IPv6 or v4-mapped IPv4 address; words hold network order bytes.
#[derive(Clone, Copy)]
pub struct Addr(pub [u32; 4]);

/// Third word of every v4-mapped address.
const V4_MAPPED_WORD: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// An IPv4 address in network order.
    #[inline(always)]
    pub fn v4(word_be: u32) -> Self {
        Self([0, 0, V4_MAPPED_WORD, word_be])
    }

    /// The word of a v4-mapped address that is the IPv4 address, in network order.
    #[inline(always)]
    pub fn v4_word(&self) -> u32 {
        self.0[3]
    }

    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MAPPED_WORD
    }

    #[inline(always)]
    pub fn equals(&self, other: &Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }

    /// The form of the wire types.
    #[inline(always)]
    pub fn bytes(&self) -> Addr16 {
        // SAFETY: both are 16 plain bytes.
        unsafe { core::mem::transmute::<[u32; 4], Addr16>(self.0) }
    }

    /// IPv4 multicast, reserved and broadcast (224.0.0.0/3), or IPv6 multicast (ff00::/8).
    #[inline(always)]
    pub fn is_multicast_or_broadcast(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 29 == 7
        } else {
            u32::from_be(self.0[0]) >> 24 == 0xff
        }
    }

    /// An address that no packet on a wire comes from: see above, 127.0.0.0/8 and ::1.
    #[inline(always)]
    pub fn is_no_source(&self) -> bool {
        let loopback = if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        };
        loopback || self.is_multicast_or_broadcast()
    }

    /// fe80::/10.
    #[inline(always)]
    pub fn is_v6_link_local(&self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }
}
