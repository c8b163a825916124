import os

from django.http import JsonResponse
from django.urls import path

from notes.models import Note


def health(_request):
    Note.objects.exists()
    return JsonResponse({"status": "healthy", "version": os.environ.get("VERSION", "0.0.0")})


urlpatterns = [path("health/", health), path("", lambda _request: JsonResponse({"notes": Note.objects.count()}))]
