# docker build --tag promot-t5x .                           for CPUs
# docker build --tag promot-t5x --build-arg EXTRA=tpu .     for TPU VMs; cuda and cuda12 for GPUs
# docker run --volume "$PWD/runs:/work/runs" promot-t5x promot --gin_file=demo/promot.gin
FROM python:3.12-slim
ARG EXTRA=""
WORKDIR /source
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".${EXTRA:+[$EXTRA]}"
WORKDIR /work
ENTRYPOINT ["promot-t5x"]
CMD ["--help"]
