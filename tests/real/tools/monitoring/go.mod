module tidemark.dev/tests/real/tools/monitoring

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.76.0
