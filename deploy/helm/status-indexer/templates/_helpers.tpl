{{/* Names and labels. */}}

{{- define "status-indexer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "status-indexer.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := include "status-indexer.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- /* The longest suffix is "-dashboard", and a name has at most 63 characters. */}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "status-indexer.selectorLabels" -}}
app.kubernetes.io/name: {{ include "status-indexer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "status-indexer.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "status-indexer.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "status-indexer.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "status-indexer.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "status-indexer.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* What values may not be combined, with a message. The schema checks each value alone. */}}
{{- define "status-indexer.check" -}}
{{- $db := .Values.metadatadb }}
{{- if and $db.password $db.existingSecret }}
{{- fail "set either metadatadb.password or metadatadb.existingSecret" }}
{{- end }}
{{- if and $db.secretKeys.url (not $db.existingSecret) }}
{{- fail "metadatadb.secretKeys.url needs metadatadb.existingSecret" }}
{{- end }}
{{- if not (or $db.host $db.existingSecret .Values.envFrom .Values.env) }}
{{- fail "set metadatadb.host, or metadatadb.existingSecret with the host" }}
{{- end }}
{{- if and $db.ssl.cert (not $db.ssl.key) }}
{{- fail "metadatadb.ssl.cert needs metadatadb.ssl.key" }}
{{- end }}
{{- $migration := .Values.migration }}
{{- if or (eq $migration.mode "daemon") (eq $migration.mode "none") }}
{{- if or $migration.grantTo $migration.existingSecret $migration.extraArgs }}
{{- fail "migration.grantTo, migration.existingSecret and migration.extraArgs need migration.mode initContainer or job" }}
{{- end }}
{{- end }}
{{- if and (eq $migration.mode "job") $db.password }}
{{- fail "migration.mode job needs metadatadb.existingSecret: the Job runs before the chart's own Secret exists" }}
{{- end }}
{{- if and (eq .Values.mode "sidecar") (eq $migration.mode "initContainer") }}
{{- fail "mode sidecar excludes migration.mode initContainer, which would keep the metadata service from starting: use daemon, job or none" }}
{{- end }}
{{- if and (eq .Values.mode "sidecar") (or .Values.api.enabled .Values.metrics.serviceMonitor.enabled) }}
{{- fail "mode sidecar has no Service: it excludes api.enabled and metrics.serviceMonitor.enabled; use metrics.podMonitor" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
{{- fail "enable either metrics.serviceMonitor or metrics.podMonitor: with both, each daemon is scraped twice" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor needs metrics.service.enabled" }}
{{- end }}
{{- end }}
