"""Target ``kubernetes``: each service is a Rollout of Argo Rollouts, whose steps are taken one by one, all services together."""
