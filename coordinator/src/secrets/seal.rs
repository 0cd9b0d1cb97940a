//! How values are kept: ChaCha20-Poly1305 under a key of the data directory, bound to tenant and row.

use std::path::Path;

use cooper_common::error::{Code, Error, Result};
use ring::{
    aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{key_file, store::Record};

/// In the data directory. No backup holds it: whoever has a backup alone cannot read what it keeps.
pub const KEY_FILE: &str = "secrets.key";
/// Of a sealed value: this, the nonce, the rest.
const FORMAT: u8 = 1;

pub struct Key(LessSafeKey);

impl Key {
    /// # Errors
    /// `data_unusable`.
    pub fn of(data: &Path) -> Result<Self> {
        let path = data.join(KEY_FILE);
        let unusable = |cause: String| {
            Error::new(Code::DataUnusable, format!("{} cannot be used: {cause}", path.display())).with_hint(
                "put it back; without it the secrets there cannot be read, and have to be set again",
            )
        };
        let key = key_file::read(&path).map_err(|cause| unusable(cause.to_string()))?;
        let key = UnboundKey::new(&aead::CHACHA20_POLY1305, &key)
            .map_err(|_| unusable("it is no key".to_owned()))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// A value as it is stored. Another row, or another tenant's, does not open with it.
    pub fn seal(&self, tenant: &str, id: &str, value: &[u8]) -> Result<Vec<u8>> {
        let failed = |_| Error::internal("a secret could not be sealed");
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let mut body = value.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), place(tenant, id), &mut body)
            .map_err(failed)?;
        Ok([&[FORMAT], &nonce[..], &body].concat())
    }

    /// The value of a row; `None` when this key did not seal it, or it was changed since.
    pub fn open(&self, record: &Record) -> Option<Vec<u8>> {
        let (format, rest) = record.row.spec.as_deref()?.split_first()?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok().filter(|_| *format == FORMAT)?;
        let mut body = sealed.to_vec();
        let length =
            self.0.open_in_place(nonce, place(&record.row.tenant, &record.id), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

fn place(tenant: &str, id: &str) -> Aad<Vec<u8>> {
    Aad::from([&(tenant.len() as u64).to_le_bytes(), tenant.as_bytes(), id.as_bytes()].concat())
}
