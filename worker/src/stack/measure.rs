//! What the containers of a service use, in numbers: for the run's metrics, never for a decision.

use cooper_repair::step::Measured;

use super::Step;

impl Step<'_> {
    /// None, where the engine does not say.
    pub(super) async fn measure(&self) -> Vec<Measured> {
        let mut measured = Vec::new();
        for seen in self.replicas().await.unwrap_or_default() {
            let usage = self.engine.usage(&seen.id).await.unwrap_or_default();
            measured.push(Measured {
                status: seen.state.status,
                health: seen.state.health,
                restart_count: seen.state.restart_count,
                exit_code: seen.state.exit_code,
                oom_killed: seen.state.oom_killed,
                image_id: seen.image_id,
                container: seen.name,
                ..usage
            });
        }
        measured
    }
}
