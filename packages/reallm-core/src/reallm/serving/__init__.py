"""An HTTP server that speaks the OpenAI API, over one generation engine. Needs the extra `reallm-core[serve]`."""
