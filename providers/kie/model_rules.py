"""The rules that the parameters of each model must meet."""

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import ParamsError, Violation
from providers.kie import market
from providers.kie.adapter import Adapter, ModelParams
from providers.kie.catalogue.known import KnownModels
from providers.kie.catalogue.validator import Validators
from providers.kie.registry import ADAPTERS


class ModelRules:
    """Reads params by their adapters, and checks the input of market models by their schemas."""

    def __init__(self, known: KnownModels, *, public_urls: bool) -> None:
        """Start without compiled schemas.

        Args:
            known: What is known of the models.
            public_urls: Whether the URLs in new params must have a public host.
        """
        self._known = known
        self._public_urls = public_urls
        self._validators = Validators(market.INPUT_PATH, public_urls=public_urls)

    def check(self, params: ProviderParams) -> None:
        """Raise ParamsError unless every rule that does not depend on the catalogue is met."""
        read_params(params, public_urls=self._public_urls)

    def complete(self, params: ProviderParams) -> ProviderParams:
        """Check the input of a market model by the model's schema, if one is known."""
        if params.kie.WhichOneof("model") != market.ADAPTER.name:
            return params
        schema = self._known.schema_of(params.kie.market.model)
        if schema is None:
            return params
        model_params = market.Market.from_message(params.kie.market)
        checked = self._validators.check(model_params.model, schema, model_params.input)
        if checked.violations:
            raise ParamsError(checked.violations)
        if checked.input is model_params.input:
            return params
        completed = ProviderParams()
        completed.CopyFrom(params)
        completed.kie.market.input.Clear()
        completed.kie.market.input.update(checked.input)
        return completed


def read_params(
    params: ProviderParams, *, public_urls: bool = False
) -> tuple[Adapter, ModelParams]:
    """Return the adapter of params, and the params as it reads them.

    Args:
        params: The params, of a new request or of a stored one.
        public_urls: Whether the URLs in them must have a public host.

    Raises:
        ParamsError: They break a rule that does not depend on the catalogue.
    """
    model = params.kie.WhichOneof("model")
    if model is None:
        names = ", ".join(ADAPTERS)
        raise ParamsError([Violation("provider_params.kie", f"must set one of {names}")])
    adapter = ADAPTERS[model]
    message = getattr(params.kie, model)
    return adapter, adapter.params.from_message(message, public_urls=public_urls)
