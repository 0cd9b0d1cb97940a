//! Plans as they are read: by programs as they are, by people as a review.

use cooper_common::error::{Code, Error, Result};
use cooper_core::change::Aggregate;
use cooper_proto::v1;
use cooper_repair::{RepairPlan, Review};

use super::Runs;
use crate::{caller::Caller, store::Filter};

impl Runs {
    /// The plan of an attempt of the tenant's run; 0 is the newest.
    pub async fn plan(&self, caller: &Caller, request: &v1::GetPlanRequest) -> Result<v1::GetPlanResponse> {
        let run = self.get(caller, &request.run_id).await?.run;
        let of_run = Filter { parent: Some(run.id.to_string()), limit: 100, ..Filter::default() };
        let mut newest: Option<RepairPlan> = None;
        for record in self.cluster.store.list(Aggregate::Plan, of_run).await?.records {
            let plan = RepairPlan::from_json(&record.row.body)
                .map_err(|error| Error::internal(format!("the stored plan {}: {error}", record.id)))?;
            let wanted = request.attempt == 0 || plan.attempt == request.attempt;
            if wanted && newest.as_ref().is_none_or(|known| known.attempt < plan.attempt) {
                newest = Some(plan);
            }
        }
        let plan = newest.ok_or_else(|| match request.attempt {
            0 => {
                let state = run.body.state.as_str();
                Error::new(Code::NoPlan, format!("run {} is {state} and has no plan", run.id))
            }
            attempt => Error::new(Code::NoPlan, format!("run {} has no plan of attempt {attempt}", run.id)),
        })?;
        let review = serde_json::to_string(&Review::of(&plan, &run.body.dir));
        Ok(v1::GetPlanResponse {
            run_id: run.id.to_string(),
            attempt: plan.attempt,
            plan_hash: plan.hash(),
            plan_json: plan.to_json(),
            review_json: review.map_err(|error| Error::internal(error.to_string()))?,
        })
    }
}
