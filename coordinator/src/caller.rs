//! Who asks: comes from the token, never from the request (I10).

use std::{net::IpAddr, sync::Arc};

use cooper_common::{
    error::{Code, Error, Result},
    token::Scope,
};

#[derive(Debug, Clone)]
pub struct Caller {
    pub tenant: Arc<str>,
    pub scope: Scope,
    pub token_id: String,
    /// The token's name: who decides, in approvals and audit.
    pub name: String,
    /// Address that the request came from.
    pub from: Option<IpAddr>,
}

impl Caller {
    /// # Errors
    /// `forbidden` when the token's scope is none of these. Admin may do whatever any scope may.
    pub fn require(&self, scopes: &[Scope]) -> Result<()> {
        if self.scope == Scope::Admin || scopes.contains(&self.scope) {
            return Ok(());
        }
        let wanted: Vec<_> = scopes.iter().chain([&Scope::Admin]).map(|scope| scope.as_str()).collect();
        Err(Error::new(
            Code::Forbidden,
            format!("a {} token may not do this; needed: {}", self.scope.as_str(), wanted.join(" or ")),
        ))
    }

    /// Sessions and runs: everybody but workers.
    pub fn require_client(&self) -> Result<()> {
        self.require(&[Scope::Operator, Scope::Client])
    }
}
